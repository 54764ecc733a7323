"""A model without some of its layers, as a model of its own."""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from fathom.importance.models.calls import Call, with_hidden
from fathom.importance.models.recurrent import RecurrentLayer


class Passthrough(nn.Module):
    """Stands where a layer was and hands on the hidden state that it is given, in the form in which the layer gave it.

    What other code reads of the layer, numbers and words, stays readable.
    """

    def __init__(self, block: nn.Module, call: Call) -> None:
        super().__init__()
        self._place = call.place
        self._form = _without_tensors(call.output)
        for name, value in vars(block).items():
            if not name.startswith("_") and name != "training" and isinstance(value, str | int | float | bool | None):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden state, unchanged."""
        hidden = args[self._place] if isinstance(self._place, int) else kwargs[self._place]
        return hidden if self._form is None else with_hidden(self._form, hidden)


class Bypassed(nn.Module):
    """A layer that runs for what it gives beside the hidden state, which later layers need; the state passes by it."""

    def __init__(self, block: nn.Module, call: Call) -> None:
        super().__init__()
        self.block = block
        self._place = call.place

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden state as it came, and what else the layer gives."""
        hidden = args[self._place] if isinstance(self._place, int) else kwargs[self._place]
        return with_hidden(self.block(*args, **kwargs), hidden)


def without_layers(
    model: nn.Module, paths: Collection[str], calls: dict[str, Call], *, bypass: bool = False
) -> nn.Module:
    """A copy of a model without the blocks at these paths; ``calls``: how each was called.

    ``bypass``: a block that gives other tensors beside the hidden state stays and is bypassed, since later ones may
    need them, as all layers of a T5 need the positions' biases of its first. Weights of blocks that go are not copied.
    """
    needed = {path for path in paths if bypass and _gives_more(model.get_submodule(path), calls[path])}
    gone = [model.get_submodule(path) for path in paths if path not in needed]
    smaller = copy.deepcopy(model, memo={id(block): block for block in gone})
    for path in paths:
        parent, _, name = path.rpartition(".")
        block = smaller.get_submodule(path)
        owner = smaller.get_submodule(parent) if parent else smaller
        owner._modules[name] = (Bypassed if path in needed else Passthrough)(block, calls[path])
    return smaller


def _gives_more(block: nn.Module, call: Call) -> bool:
    """Whether there are tensors in the output beside the hidden state; the last state of a recurrent layer is none."""
    if isinstance(block, RecurrentLayer) or not isinstance(call.output, tuple | list | Mapping):
        return False
    return any(map(_holds_tensors, call.output.values() if isinstance(call.output, Mapping) else call.output))


def _without_tensors(output: Any) -> Any:
    if output is None:
        return None
    if isinstance(output, Mapping):
        return type(output)(**{name: None if _holds_tensors(value) else value for name, value in output.items()})
    return type(output)(None if _holds_tensors(value) else value for value in output)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))
