"""ModuleLayers: a stack of any torch model seen as a LayeredModel.

Nothing of the model is rewritten. A first run records with what each block was called; after that a block runs alone on
another hidden state with the same other arguments (masks, positions, what the encoder gave), and what lies before and
behind the stack runs as the model's own forward while its blocks only hand on what they are told. That this is what
the model itself does is checked, with all layers and without each one.

Where the hidden state changes its shape, between the stages of a convolutional network, the block or module that
changes it always runs; blocks that keep the shape are the layers. What a model does to the state between two layers of
one shape belongs to the former.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from fathom.errors import ArtefactError, ConfigError, NotApplicableError
from fathom.importance.inputs import Inputs
from fathom.importance.interface import LayerTensors, run_skipping
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.calls import Call, Recorded, record
from fathom.importance.models.collation import Collation, Dense
from fathom.importance.models.layout import layout_of
from fathom.importance.models.passthrough import list_of, shortened, without_layers
from fathom.importance.models.recurrent import with_layers_apart
from fathom.importance.models.stacks import Stack, called_again, find_stacks, main_stack, parameters_of
from fathom.importance.tasks.interface import Labels, Task

#: How far a model's loss may be from that of its layers run one by one, relative and absolute.
SAME = 1e-3
#: In so many of the first batches every layer is left out in the model itself too, to compare.
PROVED = 3


@dataclass
class ModuleLayers:
    """The blocks of one stack as layers; blocks that change the shape of the hidden state are none, see ``fixed``.

    ``stack``: that with most parameters where none is named. The model is put into evaluation mode and never trained.
    Raises ConfigError for a model without repeated blocks, on no device, or quantised.

    A context manager: inside, a transformers model has its plain attention, which gives the weights that a method looks
    at. Batches that were made inside are only used inside.
    """

    model: nn.Module
    task: Task
    stack: Stack | None = None
    collation: Collation = field(default_factory=Dense)

    def __post_init__(self) -> None:
        check_model(self.model)
        self._model = with_layers_apart(self.model.eval())
        self._kernels: list[str | None] = []
        self._proved = 0
        self._stacks = find_stacks(self.model)
        if self.stack is None and self._stacks:
            self.stack = main_stack(self._stacks)
        self._watched: list[nn.Module] = []
        self._stack_of: list[int] = []
        self._layer_blocks: list[nn.Module] = []
        self._names: tuple[str, ...] = ()
        self.fixed: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._kernels.append(_attention_of(self._model, "eager"))
        return self

    def __exit__(self, *_: object) -> None:
        _attention_of(self._model, self._kernels.pop())

    def _watch(self, inputs: Inputs) -> None:
        """Decide which blocks are looked at, when the first batch comes."""
        if self.stack is None:
            again = called_again(self._model, _count_calls(self._model, inputs))
            if not again:
                raise ConfigError(f"{type(self.model).__name__} has no repeated blocks; name its layers with Stack.of")
            self.stack = main_stack(again)
        own = set(self.stack.blocks)
        others = [stack for stack in self._stacks if not own & set(stack.blocks)]
        for number, stack in enumerate((self.stack, *others)):
            self._watched += [_block(self._model, path) for path in stack.blocks]
            self._stack_of += [number] * len(stack)

    @property
    def layers(self) -> tuple[int, ...]:
        """All of them, in execution order; known once a batch was made."""
        return tuple(range(len(self._layer_blocks)))

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each layer's block; with the number of the call where one block is called several times."""
        return self._names

    @property
    def parameter_count(self) -> int:
        """Values in the parameters of all layers; 0 before there was a batch."""
        return self.size(self.layers)

    def size(self, layers: Iterable[int]) -> int:
        """Values in the parameters of some layers, shared ones once."""
        return parameters_of([self._layer_blocks[layer] for layer in layers])

    def batch(self, inputs: Inputs, labels: Labels) -> ModuleBatch:
        """Run a batch once, to see with what its blocks are called; see ``ModuleBatch``.

        Raises ConfigError where the blocks are not called one after another, or do not make up what the model does.
        """
        inputs = self._called_with(self.task.inputs(self._model, inputs, labels))
        if not self._watched:
            self._watch(inputs)
        recorded = record(self._model, inputs, self._watched, self._stack_of)
        calls = recorded.calls
        own = [place for place, call in enumerate(calls) if not self._stack_of[call.block]]
        mine = [place for place in own if calls[place].entered == calls[place].left]
        if not own:
            raise ConfigError("the model does not call the blocks that were found; name its layers with Stack.of")
        if not mine:
            raise NotApplicableError("every block changes the shape of the hidden state, so none can be left out")
        _note_added(calls, own, mine)
        self._note_layers(calls, own, mine)
        samples, node_of = self.collation.samples(inputs), self.collation.node_of(inputs)
        batch = ModuleBatch(
            self._model,
            self._watched,
            inputs,
            labels,
            samples,
            calls,
            mine,
            self._held(recorded, mine[0]),
            torch.empty(0, device=next(self._model.parameters()).device),
            [layout_of(calls[place].entered, samples, self._layer_blocks[0], node_of) for place in mine],
            None,
            self.task.losses(recorded.output, labels),
        )
        batch = replace(batch, embedding=batch.run_to(None, mine[0]).clone())
        if self._reads_first(batch):
            batch = replace(batch, layouts=[replace(layout, flipped=True) for layout in batch.layouts])
        batch = replace(batch, real=self._real(batch))
        self._check(batch)
        return batch

    def samples(self, batch: ModuleBatch) -> int:
        """How many there are."""
        return batch.samples

    def embed(self, batch: ModuleBatch) -> Tensor:
        """What the first layer is given, (samples, positions, width)."""
        return batch.layouts[0].to_states(batch.embedding)

    def run_layer(self, batch: ModuleBatch, layer: int, hidden: Tensor) -> Tensor:
        """The state after one layer, and after what the model does to it before the next, if that keeps its shape."""
        place = batch.mine[layer]
        call = batch.calls[place]
        given = batch.entering(layer, hidden)
        after = call.again(self._watched[call.block], given)
        follower = batch.calls[place + 1] if place + 1 < len(batch.calls) else None
        if (
            not call.added
            and layer + 1 < len(batch.mine)
            and batch.mine[layer + 1] == place + 1
            and follower is not None
            and not follower.follows
            and follower.entered == call.left
        ):
            after = batch.run_to((place, after), place + 1)
        return batch.layout(call.left).to_states(after)

    def run_last_layer(self, batch: ModuleBatch, layer: int, hidden: Tensor) -> Tensor:
        """As any other layer: which positions are read is the model's own affair."""
        return self.run_layer(batch, layer, hidden)

    def losses(self, batch: ModuleBatch, hidden: Tensor, labels: Labels | None = None) -> Tensor:
        """As the task says, (samples,)."""
        return self.task.losses(batch.output(hidden), batch.labels if labels is None else labels)

    def log_probabilities(self, batch: ModuleBatch, hidden: Tensor) -> Tensor:
        """As the task says, (samples, answers)."""
        return self.task.log_probabilities(batch.output(hidden), batch.labels)

    def judge(self, batch: ModuleBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's loss and the place of its answer."""
        output = batch.output(hidden)
        return self.task.losses(output, batch.labels), self.task.places(output, batch.labels)

    def targets(self, batch: ModuleBatch) -> Tensor:
        """As the task says, (samples, features)."""
        return self.task.targets(batch.labels)

    def sample_labels(self, batch: ModuleBatch, hidden: Tensor, generator: torch.Generator) -> Labels:
        """As the task says."""
        return self.task.sample_labels(batch.output(hidden), batch.labels, generator)

    def input_of(self, batch: ModuleBatch, layer: int, hidden: Tensor) -> Tensor:
        """The state, run through the change of shape before the layer if it has not been."""
        return batch.layouts[layer].to_states(batch.entering(layer, hidden))

    def real_positions(self, batch: ModuleBatch, layer: int | None = None) -> Tensor:
        """Which positions are no padding, bool (samples, positions)."""
        if batch.real is None and layer is not None:
            return batch.layouts[layer].real(batch.samples, batch.embedding.device)
        if batch.real is None:
            first, last = batch.layouts[0].size, batch.layouts[-1].size
            raise NotApplicableError(
                f"the hidden state changes its shape on the way, from {first[0]} positions of width {first[1]} to"
                f" {last[0]} of {last[1]}; the method compares states of one shape"
            )
        return batch.real

    def attention(self, batch: ModuleBatch, layer: int, hidden: Tensor) -> Tensor | None:
        """What a part of the layer gives beside its output that has the shape of attention weights; None without."""
        call = batch.calls[batch.mine[layer]]
        block = self._watched[call.block]
        found: list[Tensor] = []

        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for value in output if isinstance(output, tuple | list) else ():
                if (
                    isinstance(value, Tensor)
                    and value.dim() == 4
                    and value.shape[2] == value.shape[3] == hidden.shape[1]
                ):
                    found.append(value)

        hooks = [part.register_forward_hook(look) for part in block.modules()]
        try:
            call.again(block, batch.entering(layer, hidden))
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            return None
        weights = found[0].detach().abs().to(hidden.dtype)
        if batch.layouts[0].flipped:
            weights = weights.flip(2, 3)
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def layer_parameters(self, layer: int) -> LayerTensors:
        """The parameters of one layer's block."""
        return {name: value.detach() for name, value in self._layer_blocks[layer].named_parameters()}

    def layer_gradients(self, batch: ModuleBatch, labels: Labels | None = None) -> Mapping[int, LayerTensors]:
        """The gradient of each sample's loss, each sample run alone."""
        owners = [{id(value) for value in block.parameters()} for block in self._layer_blocks]
        if len(set().union(*owners)) < sum(map(len, owners)):
            raise NotApplicableError("layers share parameters, whose gradients cannot be told apart")
        drawn, labels = labels is not None, batch.labels if labels is None else labels
        named = [dict(block.named_parameters()) for block in self._layer_blocks]
        wanted = [value for values in named for value in values.values() if value.is_floating_point()]
        needed = [value.requires_grad for value in wanted]
        rows: list[tuple[Tensor | None, ...]] = []
        try:
            for value in wanted:
                value.requires_grad_(True)
            for sample in range(batch.samples):
                inputs = self.collation.part(batch.inputs, sample, sample + 1)
                own = self.collation.part_of_labels(labels, sample, sample + 1)
                with torch.enable_grad():
                    loss = self.task.losses(inputs.call(self._model), own).sum()
                if not drawn and not _close(loss, batch.losses[sample]):
                    raise ConfigError(ALONE)
                rows.append(torch.autograd.grad(loss, wanted, allow_unused=True))
        finally:
            for value, before in zip(wanted, needed, strict=True):
                value.requires_grad_(before)
        columns = iter(zip(*rows, strict=True))
        return {
            layer: {
                name: torch.stack(
                    [torch.zeros_like(value) if each is None else each for each in next(columns)]
                ).detach()
                for name, value in values.items()
                if value.is_floating_point()
            }
            for layer, values in enumerate(named)
        }

    def without(self, layers: Collection[int], batch: ModuleBatch) -> nn.Module:
        """A copy of the model that lacks these layers: with shorter lists where that does, see ``passthrough``.

        Raises ConfigError where layers are calls of one block, or where the copy does not give, on this batch, what
        the model gives without these layers.
        """
        self.check_apart()
        calls = {_module_path(self._names[layer]): batch.calls[batch.mine[layer]] for layer in layers}
        with torch.no_grad():
            expected = self.losses(batch, run_skipping(self, batch, layers))
        assert self.stack is not None
        for way in (
            partial(shortened, self._model, calls, self.stack.blocks),
            partial(without_layers, self._model, calls, calls),
            partial(without_layers, self._model, calls, calls, bypass=True),
        ):
            smaller = way()
            if smaller is None:
                continue
            try:
                with torch.no_grad():
                    found = self.task.losses(batch.inputs.call(smaller), batch.labels)
            except Exception:  # the model is not ours, and may raise anything
                # Later layers read what one of these gave beside the hidden state, or the list is read by numbers.
                continue
            if _close(expected, found):
                _attention_of(smaller, self._kernels[0] if self._kernels else None)
                return smaller
        raise ConfigError(f"{type(self.model).__name__} without these layers does not behave as measured")

    @property
    def running(self) -> nn.Module:
        """The model as its layers are run: the same, with recurrent layers apart."""
        return self._model

    def paths_in(self, smaller: nn.Module, keep: Collection[int]) -> tuple[str, ...]:
        """Where a model that ``without`` has made of the other layers has these."""
        assert self.stack is not None
        gone = {self._names[layer] for layer in self.layers if layer not in keep}
        left = [path for path in self.stack.blocks if path not in gone]
        owner = list_of(self.stack.blocks)
        shorter = owner is not None and len(list(smaller.get_submodule(owner).children())) < len(self.stack)
        now = dict(zip(left, self.stack.blocks, strict=False)) if shorter else {path: path for path in left}
        return tuple(_module_path(now[self._names[layer]]) for layer in sorted(keep))

    def adds(self, batch: ModuleBatch) -> bool:
        """Whether the model itself adds what its layers give to the state."""
        return batch.calls[batch.mine[0]].added

    def before_the_next(self, keep: Collection[int], batch: ModuleBatch) -> tuple[str, ...]:
        """For each of these, the layer whose state the next of them is given in the whole model, of the same shape."""
        ends = [*sorted(keep)[1:], len(self.layers)]
        found = []
        for layer, end in zip(sorted(keep), ends, strict=True):
            shapes = [batch.calls[batch.mine[other]].left for other in range(layer, end)]
            last = max(place for place, shape in enumerate(shapes) if shape == shapes[0])
            found.append(_module_path(self._names[layer + last]))
        return tuple(found)

    @property
    def are_apart(self) -> bool:
        """Whether each layer is a block of its own, not one of several calls of a block."""
        return len({id(block) for block in self._layer_blocks}) == len(self._layer_blocks)

    def check_apart(self) -> None:
        """Raise ConfigError where layers are calls of one block."""
        if not self.are_apart:
            raise ConfigError("the layers are calls of one block, none of which can be taken out; call it less often")

    def _called_with(self, inputs: Inputs) -> Inputs:
        """Without a cache, which would remember earlier calls."""
        accepts = inspect.signature(self._model.forward).parameters
        if "use_cache" in accepts and "use_cache" not in inputs.kwargs:
            return Inputs(inputs.args, {**inputs.kwargs, "use_cache": False})
        return inputs

    def _note_layers(self, calls: list[Call], own: list[int], mine: list[int]) -> None:
        blocks = [self._watched[calls[place].block] for place in mine]
        if self._layer_blocks and blocks != self._layer_blocks:
            raise ConfigError(
                "the model calls other blocks in this batch than in the one before; rank it on like batches"
            )
        assert self.stack is not None
        if not self._layer_blocks:
            several = len({id(block) for block in blocks}) < len(blocks)
            paths = [self.stack.blocks[calls[place].block] for place in mine]
            self._names = tuple(f"{path} call {n}" if several else path for n, path in enumerate(paths))
            self._layer_blocks = blocks
            self.fixed = {
                self.stack.blocks[calls[place].block]: f"changes the shape from {_sizes(calls[place].entered)} to"
                f" {_sizes(calls[place].left)}"
                for place in own
                if place not in mine
            }

    def _held(self, recorded: Recorded, before: int) -> dict[int, Tensor]:
        """What other stacks left that run before this one, as an encoder does; they are not run again."""
        began: dict[int, int] = {}
        for place, call in enumerate(recorded.calls):
            began.setdefault(call.block, place)
        return {
            block: state for block, state in recorded.after.items() if self._stack_of[block] and began[block] < before
        }

    def _reads_first(self, batch: ModuleBatch) -> bool:
        """Whether the loss depends on the first position alone, as where a classifier reads [CLS]."""
        final = self._final(batch)
        if final.shape[1] < 2 or batch.layouts[-1].form == "nodes":
            return False
        final.requires_grad_(True)
        with torch.enable_grad():
            loss = self.losses(batch, final).sum()
        if not loss.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(loss, [final], allow_unused=True, materialize_grads=True)
        read = gradient.abs().sum((0, 2)) > 0
        return bool(read[0]) and not bool(read[1:].any())

    @torch.no_grad()
    def _final(self, batch: ModuleBatch) -> Tensor:
        hidden = self.embed(batch)
        for layer in self.layers:
            hidden = self.run_layer(batch, layer, hidden)
        return hidden.detach().clone()

    def _real(self, batch: ModuleBatch) -> Tensor | None:
        if len({layout.size for layout in batch.layouts}) > 1:
            return None
        layout = batch.layouts[0]
        real = layout.real(batch.samples, batch.embedding.device)
        mask = self.collation.mask(batch.inputs, real.shape[1])
        if mask is None or mask.shape != real.shape:
            return real
        mask = mask.flip(1) if layout.flipped else mask
        return mask if bool(mask.any(1).all()) else real

    @torch.no_grad()
    def _check(self, batch: ModuleBatch) -> None:
        """The layers one by one must give what the model gives, and leaving one out what it gives without that one."""
        if not bool(torch.isfinite(batch.losses).all()):
            raise ArtefactError("the model's loss is NaN or infinite; it cannot be ranked")
        if self.adds(batch) and batch.embedding.dtype not in (torch.float32, torch.float64):
            raise ConfigError("the model adds what its layers give, which rounds in half precision; call model.float()")
        if not _close(self.losses(batch, self._final(batch)), batch.losses):
            raise ConfigError(BESIDE.format("the layers, run one by one, do not give the model's loss"))
        if self._proved == PROVED:
            return
        for layer in self.layers:
            apart = self.losses(batch, run_skipping(self, batch, {layer}))
            if not _close(apart, self.task.losses(batch.output_without(layer), batch.labels)):
                name = self._names[layer]
                raise ConfigError(BESIDE.format(f"without {name} the model's loss is not that of its other layers"))
        self._proved += 1


def _note_added(calls: list[Call], own: Sequence[int], mine: Sequence[int]) -> None:
    """Let the model add what its layers give either everywhere or nowhere; what becomes of the last is not seen."""
    everywhere = list(own) == list(mine) and len(own) > 1 and all(calls[place].added for place in own[:-1])
    for place in own:
        calls[place] = replace(calls[place], added=everywhere)


#: Why a model's layers cannot be seen one by one.
BESIDE = (
    "{}: something beside the hidden state passes between the layers, or is added to it after it was changed;"
    " name other modules as the layers (Stack.of), such as ones that hold the whole residual block"
)
#: Why samples cannot be run one by one.
ALONE = (
    "a sample alone has another loss than in its batch: samples influence each other, or an argument that belongs to no"
    " sample has as many rows as there are samples"
)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=SAME, atol=SAME, equal_nan=True)


def _attention_of(model: nn.Module, kernel: str | None) -> str | None:
    """Set how a transformers model computes attention; how it did before, None for other models."""
    set_kernel, before = getattr(model, "set_attn_implementation", None), None
    if set_kernel is not None and kernel is not None:
        before = getattr(model.config, "_attn_implementation", None)
        set_kernel(kernel)
    return before


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


def check_model(model: nn.Module) -> None:
    """Raise ConfigError, in one line, for a model whose layers cannot be measured."""
    if next(model.parameters(), None) is None:
        raise ConfigError(f"{type(model).__name__} has no parameters; there is nothing to rank")
    for name, value in model.named_parameters():
        if value.is_meta:
            raise ConfigError(f"{name} is on no device; load the model's weights first")
        if not value.is_floating_point():
            raise ConfigError(
                f"{name} is {value.dtype}: a quantised model cannot be measured; give it in floating point"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError("a scripted model cannot be taken apart; give the module that it was made of")


def _module_path(path: str) -> str:
    """Where a block is in a model with recurrent layers apart."""
    name, _, layer = path.partition("[")
    return f"{name}.layers.{layer.rstrip(']')}".lstrip(".") if layer else path


def _block(model: nn.Module, path: str) -> nn.Module:
    """A module by its path, where ``rnn[1]`` is the second layer of a recurrent one."""
    return model.get_submodule(_module_path(path))


def _sizes(shape: torch.Size) -> str:
    return " x ".join(map(str, shape[1:]))
