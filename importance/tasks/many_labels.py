"""Tasks with a label at each of many places: next tokens, those behind masks or of a translation, classes of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import IGNORED, draw, logits_of, one_hot, place_of

#: Width of the vector that stands for a token.
VECTOR = 16


@dataclass(frozen=True)
class Generation:
    """The next token at every place. Labels: int64 (samples, tokens), the tokens themselves, IGNORED where none counts.

    A sample's loss is the mean over its tokens, and its answer the last of them.
    """

    name: str = "generation"

    def inputs(self, model: nn.Module, inputs: Inputs, labels: Tensor) -> Inputs:  # noqa: ARG002
        """As they are."""
        return inputs

    def aligned(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (samples, places, answers) and the label of each place (samples, places)."""
        logits = logits_of(output)
        _check(logits, labels, self.name)
        return logits[:, :-1], labels[:, 1:]

    def losses(self, output: Any, labels: Tensor) -> Tensor:
        """The mean cross entropy of each sample's places, (samples,)."""
        logits, labels = self.aligned(output, labels)
        if int(labels.max()) >= logits.shape[-1]:
            raise ConfigError(f"{self.name}: a label lies outside of the model's {logits.shape[-1]} answers")
        each = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none", ignore_index=IGNORED)
        count = (labels != IGNORED).sum(1)
        if not bool(count.all()):
            raise ConfigError(f"{self.name}: a sample has no label that counts")
        return each.sum(1) / count

    def answers(self, output: Any, labels: Tensor) -> Tensor:
        """A row for each place that counts."""
        logits, own = self.aligned(output, labels)
        return logits[own != IGNORED]

    def log_probabilities(self, output: Any, labels: Tensor) -> Tensor:
        """Log softmax at the last place that counts, (samples, answers)."""
        return self._last(output, labels)[0].float().log_softmax(-1)

    def sample_labels(self, output: Any, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Labels of the same shape, drawn where one counts."""
        logits, own = self.aligned(output, labels)
        drawn = torch.where(own == IGNORED, own, draw(logits.flatten(0, 1), generator).view(own.shape))
        return torch.cat((labels[:, : labels.shape[1] - own.shape[1]], drawn), dim=1)

    def places(self, output: Any, labels: Tensor) -> Tensor:
        """The place of the last label among all answers, (samples,)."""
        return place_of(*self._last(output, labels))

    def targets(self, labels: Tensor) -> Tensor:
        """The mean of a vector for each token, (samples, 16), where each token has a random one, always the same."""
        tokens, places = torch.unique(labels, return_inverse=True)
        drawn = [np.random.default_rng(abs(int(token))).standard_normal(VECTOR) for token in tokens.cpu()]
        vectors = torch.from_numpy(np.stack(drawn)).float().to(labels.device)
        counted = (labels != IGNORED)[..., None]
        return (vectors[places] * counted).sum(1) / counted.sum(1).clamp(min=1)

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """Perplexity, its inverse so that higher is better, and the share of right tokens."""
        total, right, count = 0.0, 0, 0
        for output, own in zip(outputs, labels, strict=True):
            logits, wanted = self.aligned(output, own)
            there = wanted != IGNORED
            total += F.cross_entropy(logits[there].float(), wanted[there], reduction="sum").item()
            right += int((logits[there].argmax(-1) == wanted[there]).sum())
            count += int(there.sum())
        return {"token_probability": float(torch.tensor(-total / count).exp()), "token_accuracy": right / count}

    def _last(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, labels = self.aligned(output, labels)
        place, rows = _last_place(labels), torch.arange(len(labels), device=labels.device)
        return logits[rows, place], labels[rows, place]


@dataclass(frozen=True)
class SequenceToSequence(Generation):
    """The tokens of an answer to a sequence, each given those before it: translation and summarisation.

    The decoder is given the labels shifted by one, after the token with which the model starts.
    """

    name: str = "translation"

    def inputs(self, model: nn.Module, inputs: Inputs, labels: Tensor) -> Inputs:
        """With ``decoder_input_ids``, unless they are there."""
        if "decoder_input_ids" in inputs.kwargs:
            return inputs
        config = getattr(model, "config", None)
        start, padding = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
        if start is None:
            raise ConfigError(f"{self.name}: give decoder_input_ids; the model does not say with which token it starts")
        shifted = labels.roll(1, 1).masked_fill(labels.roll(1, 1) == IGNORED, padding or 0)
        shifted[:, 0] = start
        return Inputs(inputs.args, {**inputs.kwargs, "decoder_input_ids": shifted})

    def aligned(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels of the same places."""
        logits = logits_of(output)
        _check(logits, labels, self.name)
        return logits, labels


@dataclass(frozen=True)
class MaskedTokens(Generation):
    """The tokens behind masks, as BERT learns them. Labels: int64 (samples, tokens), IGNORED where none is masked."""

    name: str = "masked_tokens"

    def aligned(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels of the same places."""
        logits = logits_of(output)
        _check(logits, labels, self.name)
        return logits, labels


@dataclass(frozen=True)
class Segmentation(Generation):
    """A class for every pixel. Labels: int64 (samples, height, width), IGNORED where none; output: logits
    (samples, classes, height, width), scaled to the labels' size where they are smaller.
    """

    name: str = "segmentation"

    def aligned(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (samples, pixels, classes) and labels (samples, pixels)."""
        logits = logits_of(output)
        if logits.dim() != 4 or labels.dim() != 3:
            raise ConfigError(f"{self.name} needs logits (samples, classes, height, width) and a label for each pixel")
        if logits.shape[2:] != labels.shape[1:]:
            logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        return logits.flatten(2).transpose(1, 2), labels.flatten(1)

    def sample_labels(self, output: Any, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Of the labels' shape."""
        logits, own = self.aligned(output, labels)
        drawn = torch.where(own == IGNORED, own, draw(logits.flatten(0, 1), generator).view(own.shape))
        return drawn.view(labels.shape)

    def targets(self, labels: Tensor) -> Tensor:
        """The share of each class, (samples, largest label + 1)."""
        flat = labels.flatten(1)
        classes = int(flat.max()) + 1
        there = one_hot(flat.clamp(min=0), classes) * (flat != IGNORED)[..., None]
        return there.mean(1)

    def metrics(self, outputs: Sequence[Any], labels: Sequence[Tensor]) -> dict[str, float]:
        """Mean intersection over union of the classes that occur, and the share of right pixels."""
        pairs = [self.aligned(output, own) for output, own in zip(outputs, labels, strict=True)]
        given = torch.cat([logits.argmax(-1)[own != IGNORED] for logits, own in pairs])
        wanted = torch.cat([own[own != IGNORED] for _, own in pairs])
        shares = []
        for kind in torch.unique(wanted):
            both, either = (given == kind) & (wanted == kind), (given == kind) | (wanted == kind)
            shares.append(both.sum() / either.sum())
        return {
            "mean_iou": torch.stack(shares).mean().item(),
            "pixel_accuracy": (given == wanted).float().mean().item(),
        }


def _last_place(labels: Tensor) -> Tensor:
    """Where each sample's last label is that counts, (samples,)."""
    there = labels != IGNORED
    return (there * torch.arange(1, labels.shape[1] + 1, device=labels.device)).argmax(1)


def _check(logits: Tensor, labels: Tensor, task: str) -> None:
    if logits.dim() != 3 or labels.dim() != 2 or logits.shape[:2] != labels.shape:
        raise ConfigError(
            f"{task} needs logits (samples, places, answers) and a label for each place, not"
            f" {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
