"""Models of pictures, and of pictures with words."""

import importlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.benchmarks.experiments.own_models.sources import CLASSES, fashion, packages
from fathom.benchmarks.experiments.own_models.subjects import Ready, fit, parts
from fathom.errors import optional
from fathom.importance.tasks.many_labels import Segmentation
from fathom.importance.tasks.own_loss import OwnLoss
from fathom.importance.tasks.single_label import Classification

WIDTH, LAYERS = 64, 6
SIZE = 64
#: Pixels of a piece of clothing are brighter.
DARK = 30


def _vit(size: int, patch: int, channels: int, **more: Any) -> Any:
    return optional("transformers", "text").ViTConfig(
        image_size=size,
        patch_size=patch,
        num_channels=channels,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        **more,
    )


def _pictures(count: int) -> tuple[Tensor, Tensor]:
    """So many pictures (n, 1, 28, 28), 0 to 1, and their classes, in random order."""
    pictures, classes = fashion()
    drawn = np.random.default_rng(0).permutation(len(classes))[:count]
    return torch.from_numpy(pictures[drawn])[:, None].float() / 255, torch.from_numpy(classes[drawn])


def efficientnet() -> Ready:
    """EfficientNet-lite0 with ImageNet's weights, tuned here, names pieces of clothing at 64 x 64 pixels."""
    folder = packages()
    library = importlib.import_module("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    model = library.EfficientNet.from_name("efficientnet-lite0", num_classes=len(CLASSES))
    weights = torch.load(next(folder.glob("efficientnet_lite0*/models/*.pth")), weights_only=True)
    kept = {name: value for name, value in weights.items() if not name.startswith("_fc.")}
    model.load_state_dict(kept, strict=False)
    pictures, classes = _pictures(4_000)
    large = F.interpolate(pictures, 64, mode="bilinear").expand(-1, 3, -1, -1)
    named = {"inputs": (large * 255 - 127) / 128, "labels": classes}
    heal, rank, test = parts(named, 32, 2_800, 200, 800)
    return Ready(fit(model, Classification(), heal, epochs=2, rate=1e-3), heal, rank, test)


def vit() -> Ready:
    """A vision transformer, trained here, names pieces of clothing."""
    torch.manual_seed(0)
    model = optional("transformers", "text").ViTForImageClassification(_vit(28, 4, 1, num_labels=len(CLASSES)))
    pictures, classes = _pictures(22_000)
    heal, rank, test = parts({"pixel_values": pictures * 2 - 1, "labels": classes}, SIZE, 20_000, 500, 1_500)
    return Ready(fit(model, Classification(), heal, epochs=2, rate=1e-3), heal, rank, test)


def _canvases(count: int, side: int, things: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (n, 1, side, side) with pieces of clothing on them, the class of each pixel, 0 for none, and of the last
    piece class and box (n, 5): left, top, right, bottom as shares of the side.
    """
    rng = np.random.default_rng(1)
    pictures, classes = fashion()
    canvas = np.zeros((count, side, side), np.uint8)
    pixels = np.zeros((count, side, side), np.int64)
    boxes = np.zeros((count, 5), np.float32)
    for row in range(count):
        for number in rng.integers(len(classes), size=things):
            size = int(rng.integers(20, 29))
            steps = np.arange(size) * 28 // size
            thing = pictures[number][np.ix_(steps, steps)]
            seen = thing > DARK
            if not seen.any():
                continue
            top, left = rng.integers(0, side - size + 1, size=2)
            window = (row, slice(top, top + size), slice(left, left + size))
            canvas[window] = np.where(seen, thing, canvas[window])
            pixels[window] = np.where(seen, classes[number] + 1, pixels[window])
            down, across = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            ends = np.array([left + across[0], top + down[0], left + across[-1] + 1, top + down[-1] + 1]) / side
            boxes[row] = [classes[number], *ends]
    return torch.from_numpy(canvas)[:, None].float() / 127.5 - 1, torch.from_numpy(pixels), torch.from_numpy(boxes)


class Detector(nn.Module):
    """A vision transformer whose first position says class and box of the one thing in a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = optional("transformers", "text").ViTModel(_vit(56, 8, 1), add_pooling_layer=False)
        self.head = nn.Linear(WIDTH, len(CLASSES) + 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits of the classes and a box, (n, 14)."""
        found: Tensor = self.head(self.vit(pixel_values=pixel_values).last_hidden_state[:, 0])
        return found


def _detection_loss(output: Tensor, labels: Tensor) -> Tensor:
    named = F.cross_entropy(output[:, :-4], labels[:, 0].long(), reduction="none")
    return named + 5 * (output[:, -4:].sigmoid() - labels[:, 1:]).abs().mean(1)


def _found(output: Tensor, labels: Tensor) -> Tensor:
    """Whether the class is right and the boxes overlap by half, (n,)."""
    box, true = output[:, -4:].sigmoid(), labels[:, 1:]
    sides = (torch.minimum(box[:, 2:], true[:, 2:]) - torch.maximum(box[:, :2], true[:, :2])).clamp(min=0)
    both, areas = sides.prod(1), [(one[:, 2:] - one[:, :2]).clamp(min=0).prod(1) for one in (box, true)]
    overlap = both / (sum(areas) - both).clamp(min=1e-9)
    right: Tensor = (output[:, :-4].argmax(1) == labels[:, 0]) & (overlap >= 0.5)
    return right


def detection() -> Ready:
    """A vision transformer, trained here, finds the one piece of clothing in a larger picture."""
    torch.manual_seed(0)
    pictures, _, boxes = _canvases(14_000, 56, 1)
    task = OwnLoss(loss=_detection_loss, metric=_found)
    heal, rank, test = parts({"pixel_values": pictures, "labels": boxes}, SIZE, 12_000, 500, 1_500)
    return Ready(fit(Detector(), task, heal, epochs=4, rate=1e-3), heal, rank, test, task)


class Pixels(nn.Module):
    """Residual convolutions at a quarter of the resolution, each pixel's class at the end."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(width)
            self.inner, self.outer = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

        def forward(self, hidden: Tensor) -> Tensor:
            out: Tensor = hidden + self.outer(self.inner(self.norm(hidden).relu()).relu())
            return out

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, WIDTH, 8, 4, padding=2), nn.Conv2d(WIDTH, len(CLASSES) + 1, 1)
        self.blocks = nn.Sequential(*(self.Block(WIDTH) for _ in range(LAYERS)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pictures (n, 1, 64, 64) to logits (n, 11, 16, 16)."""
        out: Tensor = self.head(self.blocks(self.stem(pixel_values)))
        return out


def segmentation() -> Ready:
    """Residual convolutions, trained here, say which piece of clothing each pixel shows."""
    torch.manual_seed(0)
    pictures, pixels, _ = _canvases(6_000, 64, 2)
    # The model answers for each 4 x 4 pixels.
    named = {"pixel_values": pictures, "labels": pixels[:, 2::4, 2::4]}
    heal, rank, test = parts(named, SIZE, 5_000, 200, 800)
    return Ready(fit(Pixels(), Segmentation(), heal, epochs=3, rate=2e-3), heal, rank, test)


class Asked(nn.Module):
    """A transformer over the words of a question and the patches of a picture; it answers no or yes."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
            self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, hidden: Tensor) -> Tensor:
            normed = self.first(hidden)
            hidden = hidden + self.attention(normed, normed, normed, need_weights=False)[0]
            out: Tensor = hidden + self.outer(F.gelu(self.inner(self.second(hidden))))
            return out

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(CLASSES) + 3, WIDTH)
        self.patches = nn.Conv2d(1, WIDTH, 4, 4)
        self.places = nn.Parameter(torch.randn(4 + 49, WIDTH) * 0.02)
        self.layers = nn.ModuleList(self.Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """Logits of no and yes, (n, 2)."""
        seen = self.patches(pixel_values).flatten(2).transpose(1, 2)
        hidden = torch.cat((self.words(input_ids), seen), 1) + self.places
        for layer in self.layers:
            hidden = layer(hidden)
        answer: Tensor = self.head(self.norm(hidden[:, 0]))
        return answer


def asked() -> Ready:
    """A transformer over words and patches, trained here, answers «is it a coat?» of pictures; half the time it is."""
    torch.manual_seed(0)
    pictures, classes = _pictures(22_000)
    random = torch.Generator().manual_seed(1)
    yes = torch.rand(len(classes), generator=random) < 0.5
    others = (classes + torch.randint(1, len(CLASSES), classes.shape, generator=random)) % len(CLASSES)
    # "is it a", and the name of a class.
    asked_for = torch.where(yes, classes, others)[:, None]
    words = torch.cat((torch.tensor([10, 11, 12]).expand(len(classes), -1), asked_for), 1)
    named = {"input_ids": words, "pixel_values": pictures * 2 - 1, "labels": yes.long()}
    heal, rank, test = parts(named, SIZE, 20_000, 500, 1_500)
    return Ready(fit(Asked(), Classification(), heal, epochs=4, rate=1e-3), heal, rank, test)
