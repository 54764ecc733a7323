"""Runs a model while every call of its blocks can be watched, answered by somebody else, or the last to be made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, FathomError, brief
from fathom.importance.inputs import Inputs

#: What a block is called with: positional arguments and those by name.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """One call of a block, without its hidden states.

    ``block``: which. ``arguments``: what else it was given; ``places``: where in them the hidden state belongs, numbers
    or names, as attention takes one state three times. ``output``: what it gave, None for the state alone. ``entered``,
    ``left``: the shapes of the state before and after. ``follows``: whether it was given what the call before it had
    left, as it was. ``added``: the model itself adds what the block gives to the state that the block was given.
    """

    block: int
    arguments: Arguments
    places: tuple[int | str, ...]
    output: Any
    entered: torch.Size
    left: torch.Size
    follows: bool
    added: bool = False

    def again(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The state after the block for another one before it, with the same other arguments."""
        # A block may work in place.
        args, kwargs = _placed(self.arguments, self.places, hidden.clone())
        after = hidden_of(block(*args, **kwargs))
        return hidden + after if self.added else after

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The hidden state among the arguments of a like call."""
        place = self.places[0]
        return args[place] if isinstance(place, int) else kwargs[place]

    def left_out(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the block would give in a like call if it did nothing."""
        hidden = self.given(args, kwargs)
        return torch.zeros_like(hidden) if self.added else hidden

    def answer(self, hidden: Tensor) -> Any:
        """What the block gave, with another hidden state."""
        return hidden if self.output is None else with_hidden(self.output, hidden)


def _placed(arguments: Arguments, places: Sequence[int | str], value: Any) -> Arguments:
    """The arguments with a value at these places."""
    args, kwargs = list(arguments[0]), dict(arguments[1])
    for place in places:
        if isinstance(place, int):
            args[place] = value
        else:
            kwargs[place] = value
    return tuple(args), kwargs


def hidden_of(output: Any) -> Tensor:
    """The hidden state in what a block gives: the tensor itself, or the first of several things."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, nn.utils.rnn.PackedSequence):
        raise ConfigError("packed sequences cannot be taken apart by layer; give padded ones")
    several = output.values() if isinstance(output, Mapping) else output
    first = next(iter(several), None) if isinstance(output, Mapping | tuple | list) else None
    if not isinstance(first, Tensor):
        raise ConfigError(f"a layer gives {type(output).__name__} where a tensor, or a tuple of one, is needed")
    return first


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The same with another hidden state."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, Mapping):
        first = next(iter(output))
        return type(output)(**{name: hidden if name == first else value for name, value in output.items()})
    changed = (hidden, *tuple(output)[1:])
    return type(output)(*changed) if hasattr(output, "_fields") else type(output)(changed)


class _Stop(BaseException):
    """The model need not run on; no model's own handling of errors is to catch it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


#: Answers a call: its block's place, the block's own forward, and its arguments.
Handler = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def stop_with(hidden: Tensor) -> Any:
    """The model does not go on after this call, and ``run`` returns this."""
    raise _Stop(hidden)


def run(model: nn.Module, inputs: Inputs, blocks: Sequence[nn.Module], handler: Handler) -> Any:
    """The model's output where all calls of these blocks go to a handler, or what that has stopped it with."""
    places = {block: place for place, block in reversed(list(enumerate(blocks)))}
    for block in places:
        if "forward" in vars(block):
            raise ConfigError(f"{type(block).__name__} has a forward that was put in its place; take it out first")
    # What works in place would change the states that are looked at.
    in_place: list[Any] = [part for part in model.modules() if getattr(part, "inplace", False) is True]
    try:
        for part in in_place:
            part.inplace = False
        for block, place in places.items():
            block.forward = partial(_to, handler, place, block.forward)
        with without_fast_path():
            return inputs.call(model)
    except _Stop as stop:
        return stop.hidden
    finally:
        for block in places:
            vars(block).pop("forward", None)
        for part in in_place:
            part.inplace = True


@contextmanager
def without_fast_path() -> Iterator[None]:
    """A fast path of torch's own transformer layers looks into the layers, and leaves nested tensors."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _to(handler: Handler, place: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return handler(place, own, args, kwargs)


@dataclass(frozen=True)
class Recorded:
    """One run: its calls, the hidden state that each block left last, and the output."""

    calls: list[Call]
    after: dict[int, Tensor]
    output: Any


@torch.no_grad()
def record(model: nn.Module, inputs: Inputs, blocks: Sequence[nn.Module], stack_of: Sequence[int]) -> Recorded:
    """Every call of the blocks in one run of the model; ``stack_of``: which stack each block belongs to."""
    calls: list[Call] = []
    after: dict[int, Tensor] = {}
    # What each stack has left so far: an encoder's state is not the decoder's.
    left: dict[int, Tensor] = {}
    # The latest call of each, and the sum of what it was given and what it gave.
    sums: dict[int, tuple[int, Tensor]] = {}

    def handle(block: int, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = {name: None if _is_cache(value) else value for name, value in kwargs.items()}
        stack = stack_of[block]
        before = left.get(stack)
        output = own(*args, **kwargs)
        after[block] = left[stack] = found = hidden_of(output)
        places, hidden = _places(args, kwargs, before, found.shape)
        rest = None if isinstance(output, Tensor) else with_hidden(output, found.new_empty(0))
        follows = before is not None and _same(hidden, before)
        if not follows and stack in sums and _equal(hidden, sums[stack][1]):
            latest = sums[stack][0]
            calls[latest] = replace(calls[latest], added=True)
        if hidden.shape == found.shape:
            # Now, since the model may add in place.
            sums[stack] = len(calls), hidden + found
        others = _placed((args, kwargs), places, None)
        calls.append(Call(block, others, places, rest, hidden.shape, found.shape, follows))
        return output

    try:
        output = run(model, inputs, blocks, handle)
    except FathomError:
        raise
    except Exception as error:
        # The model is not ours, and may raise anything.
        raise ConfigError(f"the model cannot run this batch: {type(error).__name__}: {brief(error, 160)}") from error
    return Recorded(calls, after, output)


def _places(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], before: Tensor | None, left: torch.Size
) -> tuple[tuple[int | str, ...], Tensor]:
    """Where the hidden state is among the arguments, and the state.

    It is what the call before has left; else the first floating-point tensor of the shape that the block leaves, or of
    any shape.
    """
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    tensors = [(place, value) for place, value in given if isinstance(value, Tensor) and value.is_floating_point()]
    if not tensors:
        raise ConfigError("a layer is called without any floating-point tensor; its input cannot be told")
    last = [value for _, value in tensors if before is not None and _same(value, before)]
    alike = [value for _, value in tensors if value.shape == left]
    hidden = (last or alike or [value for _, value in tensors])[0]
    return tuple(place for place, value in tensors if _same(value, hidden)), hidden


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or views of one that show the same."""
    if one is other:
        return True
    return one.shape == other.shape and one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same but for rounding."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)


def _is_cache(value: Any) -> bool:
    """Whether it would remember the keys and values of an earlier call."""
    return type(value).__name__.endswith("Cache") and not isinstance(value, Tensor)
