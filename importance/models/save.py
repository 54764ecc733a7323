"""A model without some layers, written so that it can be opened again."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import FathomError, optional
from fathom.files import write_bytes
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import all_scores

#: Largest difference of scores between a model and itself opened again.
SAME = 1e-4


def save_pretrained(model: nn.Module, inputs: Inputs, folder: Path) -> bool:
    """Write a transformers model into a folder; whether it is one that gives the same when it is opened again.

    Where it does not, nothing is written.
    """
    if not hasattr(model, "save_pretrained"):
        return False
    with tempfile.TemporaryDirectory() as name:
        if not _opens_again(model, inputs, name):
            return False
        # With the modes that any other file gets.
        shutil.copytree(name, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return True


def _opens_again(model: Any, inputs: Inputs, name: str) -> bool:
    words: Any = optional("transformers", "text").utils.logging
    level, bars = logging.root.manager.disable, words.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    words.disable_progress_bar()
    try:
        model.save_pretrained(name)
        again = type(model).from_pretrained(name, local_files_only=True).eval().to(_device(model))
        with torch.no_grad():
            before, after = all_scores(inputs.call(model)), all_scores(inputs.call(again))
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, FathomError):
        # Such a config says something else of a model with fewer layers.
        return False
    finally:
        logging.disable(level)
        if bars:
            words.enable_progress_bar()
    return before.keys() == after.keys() and all(
        before[each].shape == after[each].shape and torch.allclose(before[each], after[each], atol=SAME, rtol=SAME)
        for each in before
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers; those that are shared are written once."""
    seen: set[tuple[Any, ...]] = set()
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        key = value.data_ptr(), value.shape, value.stride()
        if key not in seen or not value.numel():
            seen.add(key)
            state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    write_bytes(path, optional("safetensors.torch", "train").save(state))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
