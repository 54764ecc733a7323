"""Adapters of low rank beside the linear and convolutional layers of a model (LoRA, arXiv 2106.09685)."""

import warnings
from collections.abc import Iterator, Sequence

from torch import nn

from fathom.errors import ConfigError, optional

RANK = 8


def add_adapters(model: nn.Module, blocks: Sequence[str], rank: int = RANK) -> None:
    """Put adapters into the modules at these paths, in place, and freeze all but these and the blocks' norms.

    They start as no change. Raises MissingExtraError without peft, ConfigError where there is nothing to adapt.
    """
    peft = optional("peft", "peft")
    names = [name for block in blocks for name in _matrices(model, block)]
    if not names:
        raise ConfigError("LoRA needs linear or convolutional layers, and these blocks have none; heal everything")
    with warnings.catch_warnings():
        # GPT-2's Conv1D is stored the other way round; peft notices and says so.
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    for block in blocks:
        for part in model.get_submodule(block).modules():
            if type(part).__name__.endswith("Norm"):
                part.requires_grad_(True)


def merge_adapters(model: nn.Module) -> None:
    """Add what the adapters have learned to the weights beside them, and take them out, in place."""
    from peft.tuners.lora import LoraLayer

    for path, part in list(model.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            above, _, name = path.rpartition(".")
            (model.get_submodule(above) if above else model)._modules[name] = part.get_base_layer()


def _matrices(model: nn.Module, block: str) -> Iterator[str]:
    """The paths of the layers that are one matrix; torch's own attention reads its weights without calling one."""
    parts = dict(model.get_submodule(block).named_modules(prefix=block))
    attention = [path for path, part in parts.items() if isinstance(part, nn.MultiheadAttention)]
    for path, part in parts.items():
        is_matrix = isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
        is_kernel = isinstance(part, nn.Conv1d | nn.Conv2d) and part.groups == 1
        if path and (is_matrix or is_kernel) and not any(path.startswith(f"{each}.") for each in attention):
            yield path
