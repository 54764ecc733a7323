"""Which layers of a convolutional network matter: residual blocks in two stages read digits, trained here."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fathom.importance.analyzer import create_analyzer
from fathom.importance.models.distillation import Distillation


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.second(self.first(hidden).relu())
        return out


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 2, 2)
        self.stage1 = nn.Sequential(*(Block(16) for _ in range(3)))
        self.stage2 = nn.Sequential(*(Block(32) for _ in range(3)))
        self.head = nn.Linear(32, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.head(self.stage2(self.down(self.stage1(self.stem(pictures)))).mean((2, 3)))
        return out


torch.manual_seed(0)
data = load_digits()
pictures, labels = torch.tensor(data.images, dtype=torch.float)[:, None] / 16, torch.tensor(data.target)
batches = list(zip(pictures.split(64), labels.split(64), strict=True))
learned, held = batches[:24], batches[24:]

model = Digits()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(8):
    for batch, answers in learned:
        loss = nn.functional.cross_entropy(model(batch), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

analyzer = create_analyzer("digits", task_type="classification", modality_type="vision", analysis_methods=["all"])
analyzer.load_model(model)
ranking = analyzer.analyze_importance(held)
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))
print("left out:", *(f"\n  {method}: {why}" for method, why in ranking.left_out.items()))

plan = analyzer.generate_compression_plan(target_ratio=1.5)
healed = plan.heal(analyzer.batches_of(learned), Distillation(epochs=8, learning_rate=1e-3))
for name, made in (("left out", plan.apply()), ("healed", healed)):
    report = plan.report(made)
    before, after = (report["metrics"][when]["accuracy"] for when in ("before", "after"))
    print(f"{name}: accuracy {after:.3f} of {before:.3f}")
print("largest difference in onnxruntime:", plan.export("digits.onnx", healed))
