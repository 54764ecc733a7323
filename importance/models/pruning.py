"""A model without some of its layers, made from what a ModuleLayers knows of them."""

from collections.abc import Collection
from functools import partial

import torch
from torch import nn

from fathom.errors import ConfigError
from fathom.importance.interface import run_skipping
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.layered import ModuleLayers, same_losses, set_attention
from fathom.importance.models.passthrough import list_of, shortened, without_layers
from fathom.importance.models.recurrent import module_path


def check_prunable(layers: ModuleLayers) -> None:
    """Raise ConfigError where layers are calls of one block."""
    if not layers.are_apart:
        raise ConfigError("the layers are calls of one block, none of which can be taken out; call it less often")


def pruned(layers: ModuleLayers, gone: Collection[int], batch: ModuleBatch) -> nn.Module:
    """A copy of the model that lacks some layers: with shorter lists where that does, see ``passthrough``.

    Raises ConfigError where layers are calls of one block, or where the copy does not give, on this batch, what
    the model gives without these layers.
    """
    check_prunable(layers)
    calls = {module_path(layers.names[layer]): batch.calls[batch.mine[layer]] for layer in gone}
    with torch.no_grad():
        expected = layers.losses(batch, run_skipping(layers, batch, gone))
    assert layers.stack is not None
    for way in (
        partial(shortened, layers.running, calls, layers.stack.blocks),
        partial(without_layers, layers.running, calls, calls),
        partial(without_layers, layers.running, calls, calls, bypass=True),
    ):
        smaller = way()
        if smaller is None:
            continue
        try:
            with torch.no_grad():
                found = layers.task.losses(batch.inputs.call(smaller), batch.labels)
        except Exception:  # the model is not ours, and may raise anything
            # Later layers read what one of these gave beside the hidden state, or the list is read by numbers.
            continue
        if same_losses(expected, found):
            set_attention(smaller, layers.attention_before)
            return smaller
    raise ConfigError(f"{type(layers.model).__name__} without these layers does not behave as measured")


def paths_in(layers: ModuleLayers, smaller: nn.Module, keep: Collection[int]) -> tuple[str, ...]:
    """Where a model that ``pruned`` has made has the layers that it kept."""
    assert layers.stack is not None
    gone = {layers.names[layer] for layer in layers.layers if layer not in keep}
    left = [path for path in layers.stack.blocks if path not in gone]
    owner = list_of(layers.stack.blocks)
    shorter = owner is not None and len(list(smaller.get_submodule(owner).children())) < len(layers.stack)
    now = dict(zip(left, layers.stack.blocks, strict=False)) if shorter else {path: path for path in left}
    return tuple(module_path(now[layers.names[layer]]) for layer in sorted(keep))


def before_the_next(layers: ModuleLayers, keep: Collection[int], batch: ModuleBatch) -> tuple[str, ...]:
    """For each of these, the layer whose state the next of them is given in the whole model, of the same shape."""
    ends = [*sorted(keep)[1:], len(layers.layers)]
    found = []
    for layer, end in zip(sorted(keep), ends, strict=True):
        shapes = [batch.calls[batch.mine[other]].left for other in range(layer, end)]
        last = max(place for place, shape in enumerate(shapes) if shape == shapes[0])
        found.append(module_path(layers.names[layer + last]))
    return tuple(found)
