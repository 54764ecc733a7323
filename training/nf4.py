"""Weights of four bits for healing beside them: NormalFloat4 (QLoRA, arXiv 2305.14314), as bitsandbytes rounds."""

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fathom.errors import MissingExtraError
from fathom.training.model import ElasticModel

#: Weights that share a scale; the scales are rounded to 8 bits in turn.
BLOCK = 64


def linear_layers(model: ElasticModel) -> dict[str, nn.Linear]:
    """The products with weights of all blocks, by their names in the model."""
    return {f"layers.{name}": module for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)}


def pack(weight: Tensor) -> dict[str, Tensor]:
    """A weight (out, in) in NF4 as it is stored: codes, scales, shape, without the tables that all weights share."""
    codes, state = _quantised(_library(), weight)
    return {"codes": codes} | {name: value for name, value in state.as_dict(packed=True).items() if "map" not in name}


def round_to_nf4(model: ElasticModel) -> None:
    """Put every weight of ``linear_layers`` where NF4 can say it; MissingExtraError without bitsandbytes."""
    library = _library()
    for linear in linear_layers(model).values():
        rounded = library.dequantize_4bit(*_quantised(library, linear.weight))
        with torch.no_grad():
            linear.weight.copy_(rounded.view_as(linear.weight))


def _quantised(library: ModuleType, weight: Tensor) -> tuple[Tensor, Any]:
    # In one row: with rows shorter than a block, bitsandbytes 0.50.2 reads the scales of other blocks.
    flat = weight.detach().cpu().flatten()
    codes, state = library.quantize_4bit(flat, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    return codes, state


def _library() -> ModuleType:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of kernels for other machines when it is imported
    try:
        from bitsandbytes import functional
    except ModuleNotFoundError:
        raise MissingExtraError("bitsandbytes", "peft") from None
    finally:
        logging.disable(before)
    library: ModuleType = functional
    return library
