"""Adapters of low rank beside the linear and convolutional layers of a model (LoRA, arXiv 2106.09685)."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from fathom.errors import ConfigError, optional

RANK = 8


def add_adapters(model: nn.Module, blocks: Sequence[str], rank: int = RANK) -> None:
    """Put adapters into the modules at these paths, in place, and freeze all but these and the blocks' norms.

    They start as no change. What was frozen before stays as it is. Raises MissingExtraError without peft, ConfigError
    where there is nothing to adapt.
    """
    peft = optional("peft", "peft")
    names = [name for block in blocks for name in _matrices(model, block)]
    if not names:
        raise ConfigError("LoRA needs linear or convolutional layers, and these blocks have none; tune everything")
    norms = [
        value
        for block in blocks
        for part in model.get_submodule(block).modules()
        if type(part).__name__.endswith("Norm")
        for value in part.parameters()
        if value.requires_grad
    ]
    # As one expression, which has to fit a whole path; names in a list would fit the ends of others too.
    targets = "|".join(map(re.escape, names))
    with warnings.catch_warnings():
        # GPT-2's Conv1D is stored the other way round; peft notices and says so.
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model)
    for value in norms:
        value.requires_grad_(True)


def merge_adapters(model: nn.Module) -> None:
    """Add what the adapters have learned to the weights beside them, and take them out, in place."""
    from peft.tuners.lora import LoraLayer

    for path, part in list(model.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            above, _, name = path.rpartition(".")
            (model.get_submodule(above) if above else model)._modules[name] = part.get_base_layer()


def _matrices(model: nn.Module, block: str) -> Iterator[str]:
    """The paths of the modules in a block that are one matrix of their own, and are trained.

    Not those of torch's own attention, which reads its weights without calling a module.
    """
    uses = Counter(id(value) for part in model.modules() for value in part._parameters.values())
    called = Counter(id(part) for _, part in model.named_modules(remove_duplicate=False))
    parts = dict(model.get_submodule(block).named_modules(prefix=block))
    attention = [path for path, part in parts.items() if isinstance(part, nn.MultiheadAttention)]
    for path, part in parts.items():
        weight = part._parameters.get("weight")
        if not path or weight is None or not weight.requires_grad or any(path.startswith(f"{a}.") for a in attention):
            continue
        if uses[id(weight)] == called[id(part)] == 1 and _is_matrix(part):
            yield path


def _is_matrix(part: nn.Module) -> bool:
    """Whether an adapter can stand beside a module and be added to its weight."""
    if isinstance(part, nn.Conv1d | nn.Conv2d):
        return part.groups == 1 and part.padding_mode == "zeros" and set(part.dilation) == {1}
    return isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
