"""Layers of real architectures, tiny and untrained: found, skipped, and taken out."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra text is not installed")

from tiny_models import COUNTS, DECODERS, ENCODER_DECODERS, NAMES, SAMPLES, SPEECH, tiny_inputs, tiny_model

from fathom.importance.interface import run_skipping
from fathom.importance.models.layered import ModuleLayers
from fathom.importance.models.pruning import pruned
from fathom.importance.models.stacks import find_stacks
from fathom.importance.tasks.own_loss import OwnLoss


def weighed(output: Any, _: Any) -> Tensor:
    """A loss for a model without a head, which no normalisation keeps constant."""
    flat = output[0].flatten(1)
    return flat @ torch.linspace(-1, 1, flat.shape[1])


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_found_skipped_and_taken_out(name: str) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name)
    layers = ModuleLayers(model, OwnLoss(loss=weighed))
    batch = layers.batch(inputs, torch.zeros(SAMPLES))
    assert len(layers.layers) + len(layers.fixed) == COUNTS.get(name, 3)
    with torch.no_grad():
        whole = inputs.call(model)[0]
        losses = layers.losses(batch, run_skipping(layers, batch))
        torch.testing.assert_close(losses, weighed([whole], None), rtol=1e-4, atol=1e-5)
        for layer in layers.layers:
            without = layers.losses(batch, run_skipping(layers, batch, {layer}))
            assert torch.isfinite(without).all()
            assert not torch.equal(without, losses)
        if name == "albert":  # its layers are calls of one block
            return
        smaller = pruned(layers, [layers.layers[-1]], batch)
        assert inputs.call(smaller)[0].shape == whole.shape
    count = sum(value.numel() for value in model.parameters())
    assert sum(value.numel() for value in smaller.parameters()) < count


@pytest.mark.parametrize("name", [*ENCODER_DECODERS.split(), "whisper"])
def test_encoder_and_decoder_are_two_stacks(name: str) -> None:
    encoder, decoder = find_stacks(tiny_model(name, device="meta"))
    assert len(encoder) == len(decoder) == 3
    assert "encoder" in encoder.path
    assert "decoder" in decoder.path


def test_forty_architectures_are_tried() -> None:
    assert len(NAMES) >= 40
    assert set(DECODERS.split()) < set(NAMES)
    assert set(SPEECH.split()) < set(NAMES)
