"""Scores of an ElasticModel's exits over the whole catalogue."""

from collections.abc import Callable

import numpy as np
import torch

from fathom.training.baselines import Scores
from fathom.training.batches import history_batches
from fathom.training.dataset import Sequences
from fathom.training.model import ElasticModel

TOKENS = 16_384  # padded positions a forward pass takes at once


def depth_name(depth: int) -> str:
    """How an exit is called in reports."""
    return f"depth {depth}"


def exit_scorer(model: ElasticModel, device: torch.device | str = "cpu") -> Callable[[Sequences], dict[str, Scores]]:
    """Scores (histories, items) of every depth for a chunk of histories; layers that depths share run once.

    The model is moved to ``device`` and put into evaluation mode.
    """
    device = torch.device(device)
    model = model.to(device).eval()

    @torch.inference_mode()
    def score(histories: Sequences) -> dict[str, Scores]:
        vectors = model.item_vectors()
        found = {
            depth_name(depth): np.empty((len(histories), len(vectors)), dtype=np.float32) for depth in model.depths
        }
        for rows, items, times in history_batches(histories, max_history=model.config.max_history, tokens=TOKENS):
            known = times.to(device) if times is not None and model.uses_timestamps else None
            for depth, hidden in model.hidden(items.to(device), known).items():
                users = model.read_exit(depth, hidden[:, -1])
                found[depth_name(depth)][rows] = (users @ vectors.T).float().cpu().numpy()
        return found

    return score
