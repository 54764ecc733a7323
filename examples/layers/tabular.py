"""Which layers of an MLP matter: residual layers over the measurements of tumours, trained here in seconds."""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from fathom.importance.analyzer import create_analyzer


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.outer(self.inner(self.norm(hidden)).relu())
        return out


torch.manual_seed(0)
data = load_breast_cancer()
columns = torch.tensor(data.data, dtype=torch.float)
columns, labels = (columns - columns.mean(0)) / columns.std(0), torch.tensor(data.target)
order = torch.randperm(len(labels))
learned, held = order[:400], order[400:]

model = nn.Sequential(nn.Linear(30, 32), nn.Sequential(*(Residual(32) for _ in range(8))), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(100):
    loss = nn.functional.cross_entropy(model(columns[learned]), labels[learned])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

analyzer = create_analyzer("tumours", task_type="classification", modality_type="tabular")
analyzer.load_model(model)
ranking = analyzer.analyze_importance([(columns[held], labels[held])])
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))

plan = analyzer.generate_compression_plan(target_ratio=2)
report = plan.report(plan.apply())
before, after = (report["metrics"][when]["accuracy"] for when in ("before", "after"))
print(f"{report['layers']} layers: accuracy {before:.3f}")
print(f"{len(plan.keep)} layers: accuracy {after:.3f}, {report['faster']:.1f} times as fast")
