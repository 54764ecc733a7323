"""A model without some of its layers, as a model of its own."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
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
        self._call = replace(call, arguments=((), {}), output=None)
        self._form = _without_tensors(call.output)
        for name, value in vars(block).items():
            if not name.startswith("_") and name != "training" and isinstance(value, str | int | float | bool | None):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden state, unchanged, or nothing where the model adds to it what the layer gives."""
        hidden = self._call.left_out(args, kwargs)
        return hidden if self._form is None else with_hidden(self._form, hidden)


class Bypassed(nn.Module):
    """A layer that runs for what it gives beside the hidden state, which later layers need; the state passes by it."""

    def __init__(self, block: nn.Module, call: Call) -> None:
        super().__init__()
        self.block = block
        self._call = replace(call, arguments=((), {}), output=None)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden state as it came (or nothing to add to it), and what else the layer gives."""
        hidden = self._call.left_out(args, kwargs)
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
    several = call.output.values() if isinstance(call.output, Mapping) else call.output
    return any(map(_holds_tensors, tuple(several)[1:]))


def _without_tensors(output: Any) -> Any:
    """The form of what a block gives, without the tensors that it gave beside the hidden state."""
    if output is None:
        return None
    if isinstance(output, Mapping):
        first = next(iter(output))
        named = {name: value if name == first or not _holds_tensors(value) else None for name, value in output.items()}
        return type(output)(**named)
    first, *others = output
    kept = [first, *(None if _holds_tensors(value) else value for value in others)]
    return type(output)(*kept) if hasattr(output, "_fields") else type(output)(kept)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))


def shortened(model: nn.Module, paths: Collection[str], blocks: Sequence[str]) -> nn.Module | None:
    """The same with a shorter list of blocks, as if the model had been made with fewer layers; None where it has none.

    ``blocks``: the whole stack. The numbers by which layers know themselves, and a transformers model's config, say so
    too, so that the model can be saved and opened as any other.
    """
    owner = list_of(blocks)
    whole = None if owner is None else model.get_submodule(owner)
    if owner is None or not isinstance(whole, nn.ModuleList) or len(whole) != len(blocks):
        return None
    smaller = copy.deepcopy(model, memo={id(model.get_submodule(path)): nn.Identity() for path in paths})
    kept = [place for place, path in enumerate(blocks) if path not in paths]
    left = nn.ModuleList(smaller.get_submodule(blocks[place]) for place in kept)
    for place, block in enumerate(left):
        for part in block.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                vars(part)["layer_idx"] = place
    above, _, name = owner.rpartition(".")
    (smaller.get_submodule(above) if above else smaller)._modules[name] = left
    for config in _configs(smaller, owner):
        _shorten(config, owner, kept, len(blocks))
    return smaller


def list_of(blocks: Sequence[str]) -> str | None:
    """The path of what holds all blocks by their numbers; None where there is no such one."""
    owners = {path.rpartition(".")[0] for path in blocks}
    numbered = all(path.rpartition(".")[2].isdigit() for path in blocks)
    return owners.pop() if numbered and len(owners) == 1 else None


#: How configs call the number of layers of a stack, by a word of its path.
COUNTS = {
    "decoder": ("decoder_layers", "num_decoder_layers"),
    "encoder": ("encoder_layers", "num_layers"),
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
}


def _configs(model: nn.Module, owner: str) -> list[Any]:
    """The configs of a model and of the parts on the way to a list of blocks, each once."""
    names = owner.split(".")
    on_the_way = [model.get_submodule(".".join(names[:place])) for place in range(len(names))]
    found = (getattr(part, "config", None) for part in on_the_way)
    return list({id(config): config for config in found if hasattr(config, "to_dict")}.values())


def _shorten(config: Any, owner: str, kept: Sequence[int], before: int) -> None:
    """Let a config say how many layers are left."""
    for word, names in COUNTS.items():
        name = next((name for name in names if word in owner and getattr(config, name, None) == before), None)
        if name is not None:
            setattr(config, name, len(kept))
            break
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and len(kinds) == before:
        config.layer_types = [kinds[place] for place in kept]
