"""What a model of several modalities takes from each: how much its answers, and each of its layers, depend on it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError
from fathom.importance.inputs import Inputs
from fathom.importance.interface import hidden_states
from fathom.importance.models.calls import hidden_of
from fathom.importance.models.layered import ModuleLayers
from fathom.importance.models.pruning import paths_in
from fathom.importance.tasks.interface import Labels
from fathom.training.metrics import Interval, interval

#: How models call the attention to another sequence, and that to their own.
CROSS = re.compile(r"(encoder_?attn|encdecattention|cross_?attn|cross_?attention|multihead_attn)$", re.IGNORECASE)
OWN = re.compile(r"(self_?attn|self_?attention|attention|attn)$", re.IGNORECASE)


@dataclass(frozen=True)
class ModalityShares:
    """How much depends on which modality, over ``samples`` samples; intervals of 95 % are over these.

    ``rise``: modality -> by how much the loss rises where its inputs are those of another sample. ``interaction``: pair
    of modalities -> the rise with both of another sample, less both rises. Above 0 each makes up for the other
    (redundant); below 0 neither is of use without the other (complementary). ``by_layer``: modality -> by how much the
    state that each layer leaves changes then, relative to the state's own norm. ``cross_attention``: the share of each
    layer's cross-attention in the norm of all that its attention adds; None for a model that has none.
    """

    samples: int
    rise: dict[str, Interval]
    interaction: dict[tuple[str, str], Interval]
    by_layer: dict[str, tuple[float, ...]]
    cross_attention: tuple[float, ...] | None


@torch.no_grad()
def modality_shares(
    layers: ModuleLayers,
    batches: Sequence[tuple[Inputs, Labels]],
    modalities: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
) -> ModalityShares:
    """Ablate modalities by giving each sample the inputs of another one (Breiman 2001, permutation importance).

    ``modalities``: name -> names of the model's arguments, masks with what they mask. A batch of one sample, which has
    no other one, does not count; DataError is raised where no batch does, ConfigError for an argument that is not
    there.
    """
    if not modalities or any(isinstance(names, str) or not names for names in modalities.values()):
        raise ConfigError("name the modalities, each with a list of the arguments of the model that hold it")
    random = np.random.default_rng(seed)
    sets = [(name,) for name in modalities] + list(combinations(modalities, 2))
    rises: dict[tuple[str, ...], list[Tensor]] = {each: [] for each in sets}
    changes: dict[str, list[Tensor]] = {name: [] for name in modalities}
    shares: list[Tensor] = []
    with layers:
        for inputs, labels in batches:
            called = layers.task.inputs(layers.running, inputs, labels)
            if layers.collation.samples(called) < 2:
                continue
            whole = layers.batch(called, labels)
            states = hidden_states(layers, whole)
            shift = int(random.integers(1, whole.samples))
            for each in sets:
                names = {argument for name in each for argument in modalities[name]}
                other = layers.batch(_of_another(called, names, whole.samples, shift), labels)
                rises[each].append(other.losses - whole.losses)
                if len(each) == 1:
                    changes[each[0]].append(_changes(states, hidden_states(layers, other)))
            shares += _cross_shares(layers, called)
        if not rises[sets[0]]:
            raise DataError("ablating modalities needs a batch of two samples or more")
    rise = {each: torch.cat(found).double().numpy(force=True) for each, found in rises.items()}
    return ModalityShares(
        samples=len(rise[sets[0]]),
        rise={name: interval(rise[name,], seed=seed) for name in modalities},
        interaction={
            (one, other): interval(rise[one, other] - rise[one,] - rise[other,], seed=seed)
            for one, other in combinations(modalities, 2)
        },
        by_layer={name: tuple(torch.cat(found).mean(0).tolist()) for name, found in changes.items()},
        cross_attention=tuple(torch.stack(shares).mean(0).tolist()) if shares else None,
    )


def _of_another(inputs: Inputs, names: set[str], samples: int, shift: int) -> Inputs:
    """The same inputs, where those of some names are of the sample so many places on."""
    if not inputs.kwargs:
        raise ConfigError("modalities are named by the model's arguments: give batches as dicts with these names")
    unknown = names - set(inputs.kwargs)
    if unknown:
        raise ConfigError(f"the model is not called with {sorted(unknown)[0]}; there are {', '.join(inputs.kwargs)}")

    def rolled(value: Any) -> Any:
        of_samples = isinstance(value, Tensor) and value.dim() and value.shape[0] == samples
        return value.roll(shift, 0) if of_samples else value

    return Inputs(
        inputs.args, {name: rolled(value) if name in names else value for name, value in inputs.kwargs.items()}
    )


def _changes(states: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """How far apart two states are behind each layer, relative to the first, (samples, layers)."""
    pairs = zip(states[1:], others[1:], strict=True)
    apart = [(one - other).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1) for one, other in pairs]
    return torch.stack(apart, 1)


def _cross_shares(layers: ModuleLayers, inputs: Inputs) -> Iterator[Tensor]:
    """The share of cross-attention in each layer of one run, (layers,); nothing where there is none."""
    given: dict[tuple[int, bool], list[Tensor]] = {}

    def keep(layer: int, *, crosses: bool) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            given.setdefault((layer, crosses), []).append(hidden_of(output).float().norm(dim=-1).mean())

        return hook

    if not layers.are_apart:
        return
    with ExitStack() as hooks:
        for layer, path in enumerate(paths_in(layers, layers.running, layers.layers)):
            for name, part in _attentions(layers.running.get_submodule(path)):
                hook = part.register_forward_hook(keep(layer, crosses=bool(CROSS.search(name))))
                hooks.callback(hook.remove)
        inputs.call(layers.running)
    if all((layer, crosses) in given for layer in layers.layers for crosses in (True, False)):
        sums = {each: torch.stack(norms).sum() for each, norms in given.items()}
        crossing, own = (torch.stack([sums[layer, kind] for layer in layers.layers]) for kind in (True, False))
        yield crossing / (crossing + own)


def _attentions(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules of a block that attend, by their names; what BERT's add, which add the state themselves."""
    found: list[str] = []
    for name, part in block.named_modules():
        if (CROSS.search(name) or OWN.search(name)) and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
            added = getattr(getattr(part, "output", None), "dense", None)
            yield name, added if isinstance(added, nn.Module) else part
