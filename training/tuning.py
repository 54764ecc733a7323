"""Healing of a part of the weights: which of them are trained; all others stay as they are, bit for bit.

A frozen weight costs no gradient and no optimizer state, and what lies below the lowest trained one costs no backward.
"""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from fathom.errors import MissingExtraError
from fathom.training.model import ElasticModel
from fathom.training.nbits import linear_layers, round_weights

Tune = Literal["everything", "exits", "last-three", "lora", "qlora"]

RANKS: dict[Tune, int] = {"lora": 8, "qlora": 16}
LAST_LAYERS = 3


def check_extra(tune: Tune) -> None:
    """Raise MissingExtraError where a library is missing that ``tune`` needs."""
    if tune in RANKS and find_spec("peft") is None:
        raise MissingExtraError("peft", "peft")


def restrict(model: ElasticModel, tune: Tune) -> None:
    """Freeze, in place, whatever ``tune`` does not train.

    exits: the exits (norm and adapter) and the norms of all blocks. last-three: the exits and the blocks of the last
    three layers that a depth executes, of every depth, so that each gets what "head + last three layers" gives a
    network of that depth (arXiv 2411.15558). lora: adapters of rank 8 beside every linear layer of the blocks (arXiv
    2106.09685), which draw from torch's random stream and start as no change, besides what ``exits`` trains; they
    replace those layers until ``restore``. qlora: the same of rank 16, beside weights that are first rounded to the
    four bits that engines store (arXiv 2305.14314, with whole numbers in place of NF4). Raises MissingExtraError for
    both without peft.
    """
    if tune == "everything":
        return
    check_extra(tune)
    model.requires_grad_(False)
    if tune == "qlora":
        round_weights(model, 4)
    if tune in RANKS:
        _add_adapters(model, RANKS[tune])
    model.exits.requires_grad_(True)
    if tune == "last-three":
        for layer in {layer for path in model.config.paths.values() for layer in path[-LAST_LAYERS:]}:
            model.block(layer).requires_grad_(True)
        return
    for module in model.layers.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


def restore(model: ElasticModel, tune: Tune) -> ElasticModel:
    """The model as an ordinary one whose weights can all be trained; adapters are a part of the layers they adapt.

    Those of qlora stay beside them, rounded to 16 bits, as `fathom export --precision int4+lora` stores them.
    """
    if tune in RANKS:
        model = _with_own_adapters(model, RANKS[tune])
    if tune == "lora":
        model = model.merged()
    if tune == "qlora":
        with torch.no_grad():
            for name, value in model.named_parameters():
                if ".lora_" in name:
                    value.copy_(value.half())
    model.requires_grad_(True)
    return model


def _add_adapters(model: ElasticModel, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    linears = [name.removeprefix("layers.") for name in linear_layers(model)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=linears), model.layers)


def _with_own_adapters(model: ElasticModel, rank: int) -> ElasticModel:
    """peft's adapters as ours."""
    state = {}
    for name, value in model.state_dict().items():
        layer, is_adapter, which = name.partition(".lora_")
        if is_adapter:
            state[f"{layer}.lora_{which[0].lower()}"] = value.T
        else:
            state[name.replace(".base_layer.", ".")] = value
    config = model.config.model_copy(update={"adapter_rank": rank})
    return ElasticModel.of(config, state).to(model.embedding.weight.device)
