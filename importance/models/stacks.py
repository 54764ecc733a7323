"""Finds the repeated blocks of a model by its structure alone: which modules are layers, and in how many stacks.

Modules are alike when they are of one class and their paths differ in numbers only: ``encoder.layer.0`` and
``encoder.layer.11`` are both ``encoder.layer.#``, and so are ``layer1.0`` and ``layer4.2`` of a ResNet (``layer#.#``),
while ``encoder.block.0`` and ``decoder.block.0`` of a T5 belong to two stacks. Of like modules inside each other the
outermost are the layers, unless they are stages: modules that do little but hold blocks.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from torch import nn

from fathom.errors import ConfigError

#: A name that is, or ends with, a number.
NUMBERED = re.compile(r"\d+$")
#: Modules of such names, or of such classes, do not follow each other, or are no layers.
NO_NAME = re.compile(
    r"embed(ding)?s?$|norms?$|pool(er|ing|s)?$|downsamples?$|experts?$|dropouts?$|act(ivation)?s?$|heads?$"
)
NO_CLASS = re.compile(r"(Embedd?ings?|Norm(\dd)?|Pool(er|ing)?(\dd)?|Downsampl\w*|Transition|Experts?|Dropout)$")
#: A stage is a container, or named as one.
STAGE = re.compile(r"stage|sequential|modulelist|level|encoder(block)?$|layergroup$", re.IGNORECASE)
#: Of the parameters of a stage, at least so many are in its blocks.
IN_BLOCKS = 0.5
#: A stack with a smaller share of the parameters of the largest one is something else.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Stack:
    """Repeated blocks that run one after another, in the order in which they were defined.

    ``path``: that of the blocks, with # for numbers. ``kind``: the name of their class. ``blocks``: the path of each.
    ``parameters``: values in all of them, shared ones once. ``recurrent``: the blocks are the layers of one torch
    module, as nn.LSTM has them, and ``blocks`` are named as it would name them, ``rnn[0]``.
    """

    path: str
    kind: str
    blocks: tuple[str, ...]
    parameters: int
    recurrent: bool = False

    def __len__(self) -> int:
        return len(self.blocks)

    @classmethod
    def of(cls, model: nn.Module, blocks: Sequence[str]) -> Self:
        """The modules at these paths, in this order; raises ConfigError where there is no such module."""
        try:
            modules = [model.get_submodule(path) for path in blocks]
        except AttributeError as error:
            raise ConfigError(f"no such layer: {error}") from None
        if not modules:
            raise ConfigError("a stack needs the path of each of its layers")
        return cls(_pattern(blocks[0]), type(modules[0]).__name__, tuple(blocks), parameters_of(modules))


def find_stacks(model: nn.Module) -> list[Stack]:
    """The stacks of a model in the order of their definition; empty where nothing is repeated."""
    groups = _groups(model)
    found = [stack for path in _outermost(groups) for stack in _layers_of(path, groups, model)]
    found += list(_recurrent(model))
    # One matrix is a layer only where nothing larger is repeated.
    composite = [stack for stack in found if stack.recurrent or any(model.get_submodule(stack.blocks[0]).children())]
    found = composite or found
    largest = max((stack.parameters for stack in found), default=0)
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    kept = [stack for stack in found if stack.parameters >= LEAST_SHARE * largest]
    return sorted(kept, key=lambda stack: order[stack.blocks[0].partition("[")[0]])


def called_again(model: nn.Module, counts: Mapping[str, int]) -> list[Stack]:
    """The outermost modules that one run calls several times, as ALBERT its only layer: each a stack of its calls.

    ``counts``: path -> calls.
    """
    found: list[Stack] = []
    for path, module in model.named_modules():
        if not path or counts.get(path, 0) < 2 or next(module.parameters(), None) is None or not any(module.children()):
            continue
        if not any(path.startswith(f"{stack.path}.") for stack in found):
            found.append(Stack(path, type(module).__name__, (path,) * counts[path], parameters_of([module])))
    return found


def main_stack(stacks: Sequence[Stack]) -> Stack:
    """The one with most parameters; of equal ones the last, which the answer is read from."""
    return max(enumerate(stacks), key=lambda each: (each[1].parameters, each[0]))[1]


def parameters_of(modules: Sequence[nn.Module]) -> int:
    """Values in the parameters of some modules, shared ones once."""
    seen = {id(value): value.numel() for module in modules for value in module.parameters()}
    return sum(seen.values())


_Groups = dict[tuple[str, str], list[str]]


def _pattern(path: str) -> str:
    """A path with # for the numbers at the ends of its names."""
    return ".".join(NUMBERED.sub("#", name) for name in path.split("."))


def _groups(model: nn.Module) -> _Groups:
    """Paths of like modules that have parameters, by pattern and class; at least two each."""
    groups: _Groups = {}
    for path, module in model.named_modules():
        if not path or not NUMBERED.search(path.rpartition(".")[2]):
            continue
        if next(module.parameters(), None) is None or isinstance(module, nn.ModuleDict):
            continue
        kind = type(module).__name__
        names = [name.rstrip("0123456789_").lower() for name in path.split(".")[-2:]]
        if not any(map(NO_NAME.search, names)) and not NO_CLASS.search(kind):
            groups.setdefault((_pattern(path), kind), []).append(path)
    return {key: paths for key, paths in groups.items() if len(paths) > 1}


def _outermost(groups: _Groups) -> list[tuple[str, str]]:
    """The groups that lie in no other one."""
    repeated = {path for paths in groups.values() for path in paths}
    return [key for key, paths in groups.items() if repeated.isdisjoint(_above(paths[0]))]


def _above(path: str) -> Iterator[str]:
    """The paths of the modules that a module lies in."""
    while path := path.rpartition(".")[0]:
        yield path


def _layers_of(key: tuple[str, str], groups: _Groups, model: nn.Module) -> Iterator[Stack]:
    """The stack of a group, or those of the blocks inside where it is one of stages."""
    pattern, kind = key
    paths = groups[key]
    modules = [model.get_submodule(path) for path in paths]
    if STAGE.search(kind) or isinstance(modules[0], nn.Sequential | nn.ModuleList):
        below = (other for other in groups if other[0].startswith(f"{pattern}."))
        inner = [other for other in below if _are_blocks(other, pattern, groups, model)]
        inside = {other: parameters_of([model.get_submodule(path) for path in groups[other]]) for other in inner}
        enough = IN_BLOCKS * parameters_of(modules)
        best = max(inside, key=lambda other: (inside[other], -len(other[0])), default=None)
        if best is not None and inside[best] >= enough:
            yield from _layers_of(best, groups, model)
            return
    if isinstance(modules[0], nn.ModuleList):
        return
    yield Stack(pattern, kind, tuple(paths), parameters_of(modules))


def _are_blocks(key: tuple[str, str], pattern: str, groups: _Groups, model: nn.Module) -> bool:
    """Whether some stage has two or more of them, right inside it or in a list of its own.

    One matrix is no block: a layer may well be a Sequential with two.
    """
    paths, depth = groups[key], pattern.count(".") + 1
    tail = key[0][len(pattern) + 1 :]
    per_stage = Counter(".".join(path.split(".")[:depth]) for path in paths)
    composite = any(model.get_submodule(paths[0]).children())
    return composite and tail.count("#") == 1 and tail.count(".") <= 1 and max(per_stage.values()) > 1


def _recurrent(model: nn.Module) -> Iterator[Stack]:
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module.num_layers > 1:
            blocks = tuple(f"{path}[{layer}]" for layer in range(module.num_layers))
            yield Stack(f"{path}[#]", type(module).__name__, blocks, parameters_of([module]), recurrent=True)


def in_short(blocks: Sequence[str]) -> list[str]:
    """Paths of blocks, those whose last numbers follow each other as one: encoder.layer.0..11."""

    def run_of(each: tuple[int, str]) -> tuple[str, int]:
        place, path = each
        number = NUMBERED.search(path.removesuffix("]"))
        return (NUMBERED.sub("", path.removesuffix("]")), int(number[0]) - place) if number else (path, 0)

    words = []
    for (begin, _), group in groupby(enumerate(blocks), key=run_of):
        first, *others = (path for _, path in group)
        words.append(f"{first.removesuffix(']')}..{others[-1][len(begin) :]}" if others else first)
    return words
