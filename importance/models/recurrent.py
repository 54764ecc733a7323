"""A torch module of several recurrent layers as one module per layer, so that each can be seen and left out."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class RecurrentLayer(nn.Module):
    """One layer of an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, in both directions where it has two.

    It reads and gives the sequence (or a packed one) and hands back its last states too, as the whole module does.
    """

    def __init__(self, whole: nn.RNNBase, layer: int) -> None:
        super().__init__()
        directions = 2 if whole.bidirectional else 1
        size = whole.input_size if layer == 0 else directions * (whole.proj_size or whole.hidden_size)
        given: dict[str, Any] = {"proj_size": whole.proj_size} if isinstance(whole, nn.LSTM) else {}
        if isinstance(whole, nn.RNN):
            given["nonlinearity"] = whole.nonlinearity
        # On the meta device: its parameters are those of the whole, not copies.
        kind: Any = type(whole)
        self.rnn = kind(
            size,
            whole.hidden_size,
            bias=whole.bias,
            batch_first=whole.batch_first,
            bidirectional=whole.bidirectional,
            device="meta",
            **given,
        )
        for name in list(self.rnn._parameters):
            setattr(self.rnn, name, getattr(whole, name.replace("_l0", f"_l{layer}")))

    def forward(self, sequence: Any, state: Any = None) -> tuple[Any, Any]:
        """The sequence after the layer, and its last states."""
        found: tuple[Any, Any] = self.rnn(sequence, state)
        return found


class RecurrentStack(nn.Module):
    """The same module, layer by layer; dropout between layers is for training and left out."""

    def __init__(self, whole: nn.RNNBase) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RecurrentLayer(whole, layer) for layer in range(whole.num_layers))
        self.batch_first = whole.batch_first
        self._directions = 2 if whole.bidirectional else 1

    def forward(self, sequence: Any, state: Any = None) -> tuple[Any, Any]:
        """As the module that it stands for: the last layer's sequence, and the last states of all layers."""
        ends = []
        for place, layer in enumerate(self.layers):
            sequence, end = layer(sequence, self._of_layer(state, place))
            # A layer that was left out has none.
            ends += [] if end is None else [end]
        if not ends:
            return sequence, None
        if isinstance(ends[0], Tensor):
            return sequence, torch.cat(ends)
        return sequence, tuple(torch.cat(parts) for parts in zip(*ends, strict=True))

    def flatten_parameters(self) -> None:
        """Nothing: what some models call on the module that it stands for."""

    def _of_layer(self, state: Any, place: int) -> Any:
        if state is None:
            return None
        part = slice(place * self._directions, (place + 1) * self._directions)
        return state[part] if isinstance(state, Tensor) else tuple(each[part] for each in state)


def with_layers_apart(model: nn.Module) -> nn.Module:
    """The model with every recurrent module of several layers as a ``RecurrentStack``; the same weights, not copied.

    The model that is given stays as it is; it is returned itself where there is nothing to part.
    """
    paths = [path for path, part in model.named_modules() if isinstance(part, nn.RNNBase) and part.num_layers > 1]
    if "" in paths:
        whole = model
        assert isinstance(whole, nn.RNNBase)
        return RecurrentStack(whole)
    for path in paths:
        whole = model.get_submodule(path)
        assert isinstance(whole, nn.RNNBase)
        model = with_module(model, path, RecurrentStack(whole))
    return model


def with_module(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """A shallow copy of a model in which one module is another; all that is not on the way to it is shared."""
    name, _, rest = path.partition(".")
    changed = copy.copy(model)
    changed._modules = dict(model._modules)
    changed._modules[name] = with_module(model._modules[name], rest, new) if rest else new  # type: ignore[arg-type]
    return changed


def module_path(path: str) -> str:
    """Where a stack's block is in a model with recurrent layers apart: ``rnn[1]`` is the second layer of ``rnn``."""
    name, _, layer = path.partition("[")
    return f"{name}.layers.{layer.rstrip(']')}".lstrip(".") if layer else path
