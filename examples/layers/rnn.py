"""Which layers of an LSTM matter: four layers read digits row by row, trained here."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fathom.importance.analyzer import create_analyzer
from fathom.importance.models.distillation import Distillation


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 48, num_layers=4, batch_first=True), nn.Linear(48, 10)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(rows)[0][:, -1])
        return out


torch.manual_seed(0)
data = load_digits()
rows, labels = torch.tensor(data.images, dtype=torch.float) / 16, torch.tensor(data.target)
batches = list(zip(rows.split(64), labels.split(64), strict=True))
learned, held = batches[:24], batches[24:]

model = Rows()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for _ in range(15):
    for batch, answers in learned:
        loss = nn.functional.cross_entropy(model(batch), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

analyzer = create_analyzer("rows", task_type="classification", modality_type="vision")
analyzer.load_model(model)
ranking = analyzer.analyze_importance(held)
# The first layer changes the width from 8 to 48, so it always runs.
print("always run:", analyzer.layers.fixed)
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))

plan = analyzer.generate_compression_plan(target_ratio=1.4)
healed = plan.heal(analyzer.batches_of(learned), Distillation(epochs=8, learning_rate=3e-3))
report = plan.report(healed)
print(f"without {', '.join(plan.left_out)}: accuracy {report['metrics']['after']['accuracy']:.3f}", end=" ")
print(f"of {report['metrics']['before']['accuracy']:.3f}")
