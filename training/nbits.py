"""Weights in a few bits, as onnxruntime's MatMulNBits holds them: whole numbers, in blocks that share a scale."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.training.model import ElasticModel

#: Inputs of one output whose weights share a scale, which has 16 bits.
BLOCK = 32


def linear_layers(model: ElasticModel) -> dict[str, nn.Linear]:
    """The products with weights of all blocks, by their names in the model."""
    return {f"layers.{name}": module for name, module in model.layers.named_modules() if isinstance(module, nn.Linear)}


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A weight (out, in) with every value where ``bits`` can say it; what is rounded already stays as it is.

    Codes go from -2^(bits - 1) to 2^(bits - 1) - 1; the scale gives the largest value of a block the first of them.
    """
    half = 2 ** (bits - 1)
    outputs, inputs = weight.shape
    blocks = F.pad(weight.detach(), (0, -inputs % BLOCK)).view(outputs, -1, BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = (largest / -half).half().to(weight.dtype)
    codes = torch.where(scales == 0, 0.0, blocks / scales).round().clamp(-half, half - 1)
    found: Tensor = (codes * scales).view(outputs, -1)[:, :inputs]
    return found


def bits_per_weight(bits: int) -> float:
    """With the share of a scale."""
    return bits + 16 / BLOCK


def round_weights(model: ElasticModel, bits: int) -> None:
    """Round every weight of ``linear_layers``, in place."""
    with torch.no_grad():
        for linear in linear_layers(model).values():
            linear.weight.copy_(rounded(linear.weight, bits))
