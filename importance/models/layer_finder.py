"""LayerFinder: which blocks of a model are its layers, by what a run calls.

Where the hidden state changes its shape, between the stages of a convolutional network, the block or module that
changes it always runs; blocks that keep the shape are the layers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, NotApplicableError
from fathom.importance.inputs import Inputs
from fathom.importance.models.calls import Call, Recorded, record
from fathom.importance.models.recurrent import module_path
from fathom.importance.models.stacks import Stack, called_again, find_stacks, main_stack


class LayerFinder:
    """Finds the layers of one stack of a model; ``running``: the model with its recurrent layers apart.

    ``stack``: None until the first run where the model has no stack by its structure. ``watched``: the blocks of all
    stacks. ``blocks``, ``names``: the block of each layer and what it is called, empty before the first run; ``fixed``:
    blocks of the stack that are no layers, and why.
    """

    def __init__(self, model: nn.Module, running: nn.Module, stack: Stack | None) -> None:
        self._running = running
        self._kind = type(model).__name__
        self._stacks = find_stacks(model)
        self.stack = main_stack(self._stacks) if stack is None and self._stacks else stack
        self.watched: list[nn.Module] = []
        self._stack_of: list[int] = []
        self.blocks: list[nn.Module] = []
        self.names: tuple[str, ...] = ()
        self.fixed: dict[str, str] = {}

    def run(self, inputs: Inputs) -> tuple[Recorded, list[int]]:
        """Run the model once: what it calls, and which of these calls are the layers.

        Raises ConfigError where the blocks are not called one after another, or are others than in the run before.
        """
        if not self.watched:
            self._watch(inputs)
        recorded = record(self._running, inputs, self.watched, self._stack_of)
        calls = recorded.calls
        own = [place for place, call in enumerate(calls) if not self._stack_of[call.block]]
        mine = [place for place in own if calls[place].entered == calls[place].left]
        if not own:
            raise ConfigError("the model does not call the blocks that were found; name its layers with Stack.of")
        if not mine:
            raise NotApplicableError("every block changes the shape of the hidden state, so none can be left out")
        _note_added(calls, own, mine)
        self._note_layers(calls, own, mine)
        return recorded, mine

    def held(self, recorded: Recorded, before: int) -> dict[int, Tensor]:
        """What other stacks left that run before this one, as an encoder does; they are not run again."""
        began: dict[int, int] = {}
        for place, call in enumerate(recorded.calls):
            began.setdefault(call.block, place)
        return {
            block: state for block, state in recorded.after.items() if self._stack_of[block] and began[block] < before
        }

    def _watch(self, inputs: Inputs) -> None:
        """Decide which blocks are looked at, when the first batch comes."""
        if self.stack is None:
            again = called_again(self._running, _count_calls(self._running, inputs))
            if not again:
                raise ConfigError(f"{self._kind} has no repeated blocks; name its layers with Stack.of")
            self.stack = main_stack(again)
        own = set(self.stack.blocks)
        others = [stack for stack in self._stacks if not own & set(stack.blocks)]
        for number, stack in enumerate((self.stack, *others)):
            self.watched += [self._running.get_submodule(module_path(path)) for path in stack.blocks]
            self._stack_of += [number] * len(stack)

    def _note_layers(self, calls: list[Call], own: list[int], mine: list[int]) -> None:
        blocks = [self.watched[calls[place].block] for place in mine]
        if self.blocks and blocks != self.blocks:
            raise ConfigError(
                "the model calls other blocks in this batch than in the one before; rank it on like batches"
            )
        assert self.stack is not None
        if not self.blocks:
            several = len({id(block) for block in blocks}) < len(blocks)
            paths = [self.stack.blocks[calls[place].block] for place in mine]
            self.names = tuple(f"{path} call {n}" if several else path for n, path in enumerate(paths))
            self.blocks = blocks
            self.fixed = {
                self.stack.blocks[calls[place].block]: f"changes the shape from {_sizes(calls[place].entered)} to"
                f" {_sizes(calls[place].left)}"
                for place in own
                if place not in mine
            }


def _note_added(calls: list[Call], own: Sequence[int], mine: Sequence[int]) -> None:
    """Let the model add what its layers give either everywhere or nowhere; what becomes of the last is not seen."""
    everywhere = list(own) == list(mine) and len(own) > 1 and all(calls[place].added for place in own[:-1])
    for place in own:
        calls[place] = replace(calls[place], added=everywhere)


@torch.no_grad()
def _count_calls(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """How often one run calls each module, by path."""
    counts: Counter[str] = Counter()

    def counted(path: str) -> Callable[..., None]:
        return lambda *_: counts.update([path])

    hooks = [module.register_forward_pre_hook(counted(path)) for path, module in model.named_modules()]
    try:
        inputs.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _sizes(shape: torch.Size) -> str:
    return " x ".join(map(str, shape[1:]))
