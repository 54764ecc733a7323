"""Scores of an ElasticModel's exits over the whole catalogue."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fathom.training.baselines import Scores
from fathom.training.batches import history_batches
from fathom.training.context import Context
from fathom.training.dataset import Sequences
from fathom.training.model import ElasticModel
from fathom.training.request_time import RequestTime, gaps_of

TOKENS = 16_384  # padded positions a forward pass takes at once


def depth_name(depth: int) -> str:
    """How an exit is called in reports."""
    return f"depth {depth}"


def exit_users(
    model: ElasticModel, device: torch.device | str = "cpu"
) -> Callable[[Sequences], dict[int, NDArray[np.float32]]]:
    """User vectors (histories, width) of every depth for a chunk of histories; layers that depths share run once.

    The model is moved to ``device`` and put into evaluation mode.
    """
    device = torch.device(device)
    model = model.to(device).eval()

    @torch.inference_mode()
    def read(histories: Sequences) -> dict[int, NDArray[np.float32]]:
        found = {depth: np.empty((len(histories), model.config.width), np.float32) for depth in model.depths}
        for rows, items, times in history_batches(histories, max_history=model.config.max_history, tokens=TOKENS):
            known = times.to(device) if times is not None and model.uses_timestamps else None
            for depth, hidden in model.hidden(items.to(device), known).items():
                found[depth][rows] = model.read_exit(depth, hidden[:, -1]).float().cpu().numpy()
        return found

    return read


def exit_scorer(
    model: ElasticModel,
    device: torch.device | str = "cpu",
    request_time: RequestTime | None = None,
    context: Context | None = None,
) -> Callable[[Sequences], dict[str, Scores]]:
    """Scores (histories, items) of every depth for a chunk of histories, at the times and contexts of their requests.

    ``request_time``, ``context``: None where these change nothing. The model is moved to ``device`` and put into
    evaluation mode.
    """
    users = exit_users(model, device)

    @torch.inference_mode()
    def score(histories: Sequences) -> dict[str, Scores]:
        vectors, found = model.item_vectors().float(), users(histories)
        if request_time is not None:
            gaps = gaps_of(histories)
            found = {depth: request_time.moved(each, gaps) for depth, each in found.items()}
        if context is not None:
            found = {depth: context.moved(each, histories.asked_contexts) for depth, each in found.items()}
        moved = {depth_name(depth): torch.from_numpy(each).to(vectors.device) for depth, each in found.items()}
        return {name: (each @ vectors.T).cpu().numpy() for name, each in moved.items()}

    return score
