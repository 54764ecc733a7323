"""A model's modules as lines, with its stacks of layers marked."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from fathom.importance.models.stacks import Stack, in_short, parameters_of


class Row(NamedTuple):
    """``depth``: how far it is inside; ``stack``: the number of the stack that it is, from 1, or 0."""

    depth: int
    name: str
    kind: str
    parameters: int
    stack: int


def tree(model: nn.Module, stacks: Sequence[Stack]) -> list[Row]:
    """The modules down to the stacks, the blocks of a stack as one row each list; other modules with parameters."""
    return list(_rows(model, "", 0, stacks))


def _rows(module: nn.Module, path: str, depth: int, stacks: Sequence[Stack]) -> Iterator[Row]:
    yield Row(depth, path.rpartition(".")[2] or "model", type(module).__name__, parameters_of([module]), 0)
    inside = f"{path}." if path else ""
    shown: set[str] = set()
    for number, stack in enumerate(stacks, 1):
        own = [block for block in stack.blocks if block.startswith(inside) and "." not in block[len(inside) :]]
        own = list(dict.fromkeys(own))
        if own and not any("[" in block for block in own):
            blocks = [module.get_submodule(block[len(inside) :]) for block in own]
            name = ", ".join(short[len(inside) :] for short in in_short(own))
            yield Row(depth + 1, f"{name} ({len(own)} layers)", stack.kind, parameters_of(blocks), number)
            shown.update(own)
    for name, child in module.named_children():
        below = inside + name
        if below in shown or next(child.parameters(), None) is None:
            continue
        recurrent = next((n for n, stack in enumerate(stacks, 1) if stack.blocks[0].startswith(f"{below}[")), 0)
        if recurrent:
            count = len(stacks[recurrent - 1])
            yield Row(depth + 1, f"{name} ({count} layers)", type(child).__name__, parameters_of([child]), recurrent)
        elif any(block.startswith(f"{below}.") for stack in stacks for block in stack.blocks):
            yield from _rows(child, below, depth + 1, stacks)
        else:
            yield Row(depth + 1, name, type(child).__name__, parameters_of([child]), 0)
