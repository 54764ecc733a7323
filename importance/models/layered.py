"""ModuleLayers: a stack of any torch model seen as a LayeredModel.

Nothing of the model is rewritten. A first run records with what each block was called; after that a block runs alone on
another hidden state with the same other arguments (masks, positions, what the encoder gave), and what lies before and
behind the stack runs as the model's own forward while its blocks only hand on what they are told. That this is what
the model itself does is checked, with all layers and without each one.

Which blocks are the layers, ``layer_finder`` says; without some of them ``pruning`` makes a model of its own. What a
model does to the state between two layers of one shape belongs to the former.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fathom.errors import ArtefactError, ConfigError, NotApplicableError
from fathom.importance.inputs import Inputs
from fathom.importance.interface import LayerTensors, run_skipping
from fathom.importance.models.batch import ModuleBatch
from fathom.importance.models.collation import Collation, Dense
from fathom.importance.models.layer_finder import LayerFinder
from fathom.importance.models.layout import layout_of
from fathom.importance.models.recurrent import with_layers_apart
from fathom.importance.models.stacks import Stack, parameters_of
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
        self._finder = LayerFinder(self.model, self._model, self.stack)
        self.stack = self._finder.stack
        self._kernels: list[str | None] = []
        self._proved = 0

    def __enter__(self) -> Self:
        self._kernels.append(set_attention(self._model, "eager"))
        return self

    def __exit__(self, *_: object) -> None:
        set_attention(self._model, self._kernels.pop())

    @property
    def layers(self) -> tuple[int, ...]:
        """All of them, in execution order; known once a batch was made."""
        return tuple(range(len(self._finder.blocks)))

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each layer's block; with the number of the call where one block is called several times."""
        return self._finder.names

    @property
    def fixed(self) -> Mapping[str, str]:
        """The blocks of the stack that always run, and why; known once a batch was made."""
        return self._finder.fixed

    @property
    def parameter_count(self) -> int:
        """Values in the parameters of all layers; 0 before there was a batch."""
        return self.size(self.layers)

    def size(self, layers: Iterable[int]) -> int:
        """Values in the parameters of some layers, shared ones once."""
        return parameters_of([self._finder.blocks[layer] for layer in layers])

    def batch(self, inputs: Inputs, labels: Labels) -> ModuleBatch:
        """Run a batch once, to see with what its blocks are called; see ``ModuleBatch``.

        Raises ConfigError where the blocks are not called one after another, or do not make up what the model does.
        """
        inputs = self._called_with(self.task.inputs(self._model, inputs, labels))
        recorded, mine = self._finder.run(inputs)
        self.stack, calls = self._finder.stack, recorded.calls
        samples, node_of = self.collation.samples(inputs), self.collation.node_of(inputs)
        batch = ModuleBatch(
            self._model,
            self._finder.watched,
            inputs,
            labels,
            samples,
            calls,
            mine,
            self._finder.held(recorded, mine[0]),
            torch.empty(0, device=next(self._model.parameters()).device),
            [layout_of(calls[place].entered, samples, self._finder.blocks[0], node_of) for place in mine],
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
        after = call.again(self._finder.watched[call.block], given)
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
        block = self._finder.watched[call.block]
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
        return {name: value.detach() for name, value in self._finder.blocks[layer].named_parameters()}

    def layer_gradients(self, batch: ModuleBatch, labels: Labels | None = None) -> Mapping[int, LayerTensors]:
        """The gradient of each sample's loss, each sample run alone."""
        owners = [{id(value) for value in block.parameters()} for block in self._finder.blocks]
        if len(set().union(*owners)) < sum(map(len, owners)):
            raise NotApplicableError("layers share parameters, whose gradients cannot be told apart")
        drawn, labels = labels is not None, batch.labels if labels is None else labels
        named = [dict(block.named_parameters()) for block in self._finder.blocks]
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
                if not drawn and not same_losses(loss, batch.losses[sample]):
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

    @property
    def running(self) -> nn.Module:
        """The model as its layers are run: the same, with recurrent layers apart."""
        return self._model

    @property
    def attention_before(self) -> str | None:
        """How a transformers model computes attention outside of this context manager; None where that is as inside."""
        return self._kernels[0] if self._kernels else None

    def adds(self, batch: ModuleBatch) -> bool:
        """Whether the model itself adds what its layers give to the state."""
        return batch.calls[batch.mine[0]].added

    @property
    def are_apart(self) -> bool:
        """Whether each layer is a block of its own, not one of several calls of a block."""
        return len({id(block) for block in self._finder.blocks}) == len(self._finder.blocks)

    def _called_with(self, inputs: Inputs) -> Inputs:
        """Without a cache, which would remember earlier calls."""
        accepts = inspect.signature(self._model.forward).parameters
        if "use_cache" in accepts and "use_cache" not in inputs.kwargs:
            return Inputs(inputs.args, {**inputs.kwargs, "use_cache": False})
        return inputs

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
        if not same_losses(self.losses(batch, self._final(batch)), batch.losses):
            raise ConfigError(BESIDE.format("the layers, run one by one, do not give the model's loss"))
        if self._proved == PROVED:
            return
        for layer in self.layers:
            apart = self.losses(batch, run_skipping(self, batch, {layer}))
            if not same_losses(apart, self.task.losses(batch.output_without(layer), batch.labels)):
                name = self.names[layer]
                raise ConfigError(BESIDE.format(f"without {name} the model's loss is not that of its other layers"))
        self._proved += 1


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


def same_losses(one: Tensor, other: Tensor) -> bool:
    """Whether losses of two ways to run the same layers are the same, but for rounding."""
    return torch.allclose(one.float(), other.float(), rtol=SAME, atol=SAME, equal_nan=True)


def set_attention(model: nn.Module, kernel: str | None) -> str | None:
    """Set how a transformers model computes attention; how it did before, None for other models."""
    set_kernel, before = getattr(model, "set_attn_implementation", None), None
    if set_kernel is not None and kernel is not None:
        before = getattr(model.config, "_attn_implementation", None)
        set_kernel(kernel)
    return before


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
