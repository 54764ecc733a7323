"""A model without some layers, written so that it can be opened again."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import optional
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import logits_of

#: Largest difference of scores between a model and itself opened again.
SAME = 1e-4


def save_pretrained(model: nn.Module, inputs: Inputs, folder: Path) -> bool:
    """Write a transformers model into a folder; whether it is one that gives the same when it is opened again.

    Where it does not, nothing is written.
    """
    save: Any = getattr(model, "save_pretrained", None)
    if save is None:
        return False
    transformers = optional("transformers", "text")
    bars, quiet = transformers.utils.logging.disable_progress_bar, logging.disable
    bars()
    quiet(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as name:
            save(name)
            kind: Any = type(model)
            again = kind.from_pretrained(name, local_files_only=True).eval()
            with torch.no_grad():
                one, other = logits_of(inputs.call(model)), logits_of(inputs.call(again.to(_device(model))))
            if one.shape != other.shape or not torch.allclose(one, other, atol=SAME, rtol=SAME):
                return False
            for file in Path(name).iterdir():
                shutil.copyfile(file, folder / file.name)
            return True
    except (OSError, ValueError, RuntimeError, TypeError):
        # Such a config says something else of a model with fewer layers.
        return False
    finally:
        quiet(logging.NOTSET)
        transformers.utils.logging.enable_progress_bar()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers; those that are shared are written once."""
    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            seen.add(value.data_ptr())
            state[name] = value.detach().cpu().contiguous()
    optional("safetensors.torch", "train").save_file(state, path)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
