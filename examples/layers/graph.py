"""Which message-passing steps of a graph network matter: it tells rings from chains, trained here."""

import torch
from torch import Tensor, nn

from fathom.importance.analyzer import create_analyzer

WIDTH = 32


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, hidden: Tensor, edges: Tensor) -> Tensor:
        normed = self.norm(hidden)
        heard = normed.index_add(0, edges[1], normed[edges[0]])
        out: Tensor = hidden + self.outer(self.inner(heard).relu())
        return out


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 2)
        self.steps = nn.ModuleList(Step() for _ in range(6))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        hidden = self.enter(x)
        for step in self.steps:
            hidden = step(hidden, edge_index)
        graphs = hidden.new_zeros(int(batch.max()) + 1, WIDTH).index_add(0, batch, hidden)
        out: Tensor = self.head(graphs)
        return out


def graphs(count: int) -> dict[str, Tensor]:
    """Rings and chains of 5 to 12 nodes, with two bonds more between random nodes, as one batch."""
    edges, owners, labels, start = [], [], [], 0
    for graph in range(count):
        nodes, ring = int(torch.randint(5, 13, ())), int(torch.randint(2, ()))
        pairs = [(node, (node + 1) % nodes) for node in range(nodes if ring else nodes - 1)]
        pairs += torch.randint(nodes, (2, 2)).tolist()
        edges += [(start + a, start + b) for a, b in pairs]
        owners += [graph] * nodes
        labels.append(ring)
        start += nodes
    both = torch.tensor(edges).T
    x = torch.ones(start, 1)
    return {
        "x": x,
        "edge_index": torch.cat((both, both.flip(0)), 1),
        "batch": torch.tensor(owners),
        "labels": torch.tensor(labels),
    }


torch.manual_seed(0)
learned, held = [graphs(64) for _ in range(20)], [graphs(64) for _ in range(4)]
model = Graphs()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(10):
    for batch in learned:
        given = {name: value for name, value in batch.items() if name != "labels"}
        loss = nn.functional.cross_entropy(model(**given), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

analyzer = create_analyzer("rings", task_type="classification", modality_type="graph")
analyzer.load_model(model)
ranking = analyzer.analyze_importance(held)
print("steps, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))

plan = analyzer.generate_compression_plan(target_ratio=1.5)
report = plan.report(plan.heal(analyzer.batches_of(learned)))
print(f"{len(plan.keep)} of {report['layers']} steps, healed: accuracy", end=" ")
print(f"{report['metrics']['after']['accuracy']:.3f} of {report['metrics']['before']['accuracy']:.3f}")
