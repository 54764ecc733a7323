"""A batch that a model has run once, and the model's own forward from any call of its blocks to any other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.inputs import Inputs
from fathom.importance.models.calls import Call, run, stop_with
from fathom.importance.models.layout import Layout
from fathom.importance.tasks.interface import Labels


@dataclass(frozen=True, eq=False)
class ModuleBatch:
    """A batch as it was run once.

    ``blocks``: of all stacks. ``calls``: of these, in order. ``mine``: which are layers of the stack that is looked
    at. ``held``: what other stacks left before it. ``layouts``: of the hidden state before and after each layer.
    ``real``: (samples, positions), None where the state changes its shape on the way.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    inputs: Inputs
    labels: Labels
    samples: int
    calls: list[Call]
    mine: list[int]
    held: Mapping[int, Tensor]
    embedding: Tensor
    layouts: list[Layout]
    real: Tensor | None
    losses: Tensor

    def layout(self, shape: torch.Size) -> Layout:
        """That of a hidden state of this shape."""
        return next(layout for layout in reversed(self.layouts) if layout.shape == shape)

    def entering(self, layer: int, hidden: Tensor) -> Tensor:
        """A state as the layer's block takes it, run through the change of shape before it if it has not been."""
        size = (hidden.shape[1], hidden.shape[2])
        if self.layouts[layer].size == size:
            return self.layouts[layer].to_hidden(hidden)
        for earlier in reversed(range(layer)):
            if self.layouts[earlier].size == size:
                after = self.layouts[earlier].to_hidden(hidden)
                return self.run_to((self.mine[earlier], after), self.mine[layer])
        raise ConfigError(f"no layer before layer {layer} leaves a state of {size[0]} positions and width {size[1]}")

    def output(self, hidden: Tensor) -> Any:
        """The model's output, given the last layer's state, or that of the last layer which runs."""
        size = (hidden.shape[1], hidden.shape[2])
        for place, layout in zip(reversed(self.mine), reversed(self.layouts), strict=True):
            if layout.size == size:
                return self._run((place, layout.to_hidden(hidden)), len(self.calls))
        raise ConfigError(f"no layer leaves a state of {size[0]} positions and width {size[1]}")

    def output_without(self, layer: int) -> Any:
        """The model's output where it runs as it is, and one layer hands on what it is given."""
        number, skipped = count(), self.mine[layer]

        def handle(_: int, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if next(number) != skipped:
                return own(*args, **kwargs)
            call = self.calls[skipped]
            return call.answer(call.left_out(args, kwargs))

        return run(self.model, self.inputs, self.blocks, handle)

    def run_to(self, after: tuple[int, Tensor] | None, stop: int) -> Tensor:
        """What the call number ``stop`` is given, where ``after`` says what an earlier call leaves."""
        found: Tensor = self._run(after, stop)
        return found

    def _run(self, after: tuple[int, Tensor] | None, stop: int) -> Any:
        """The model from what one call leaves, to another call or to its end; without the layers in between."""
        begin, state = (-1, None) if after is None else after
        number, layers = count(), set(self.mine)

        def handle(block: int, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            place = next(number)
            if place >= len(self.calls):
                raise ConfigError("the model calls its blocks a different number of times in each run")
            call = self.calls[place]
            if place == stop:
                return stop_with(call.given(args, kwargs))
            if call.added and place in layers:
                # The state is what the first was given and all that is added to it: the first gives all of that.
                to_first = state is not None and place == self.mine[0]
                return call.answer(state - call.given(args, kwargs) if to_first else call.left_out(args, kwargs))
            if place == begin:
                assert state is not None
                # What comes after may work in place.
                return call.answer(state.clone())
            if place < begin or block in self.held:
                left = self.held.get(block)
                if left is None or left.shape != call.left:
                    # Nobody looks at it.
                    left = self.embedding.new_zeros(call.left)
                return call.answer(left)
            if place in layers:
                return call.answer(call.left_out(args, kwargs))
            return own(*args, **kwargs)

        return run(self.model, self.inputs, self.blocks, handle)
