"""Small models of every task and modality, with a batch for each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.importance.analyzer import LayerAnalyzer, create_analyzer
from fathom.importance.tasks.own_loss import OwnLoss
from fathom.importance.tasks.single_label import Retrieval

transformers = pytest.importorskip("transformers", reason="the extra text is not installed")
SAMPLES, TOKENS, CLASSES = 12, 7, 3
QUICK = ("ablation", "gradient")
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def draw(*shape: int, most: int = CLASSES, least: int = 0) -> Tensor:
    return torch.randint(least, most, shape, generator=torch.Generator().manual_seed(3))


IDS = draw(SAMPLES, TOKENS, most=50, least=5)
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
TEXT = {"input_ids": IDS, "attention_mask": MASK}
SOUND = torch.randn(SAMPLES, 4, 20, generator=torch.Generator().manual_seed(5))
PICTURES = torch.randn(SAMPLES, 3, 16, 16, generator=torch.Generator().manual_seed(4))


class Cnn(nn.Module):
    """Two stages of residual blocks, of which the first of the second one changes the shape."""

    class Block(nn.Module):
        def __init__(self, width: int, to: int, stride: int = 1) -> None:
            super().__init__()
            self.conv, self.norm, self.act = (
                nn.Conv2d(width, to, 3, stride, 1),
                nn.BatchNorm2d(to),
                nn.ReLU(inplace=True),
            )
            self.short = nn.Identity() if stride == 1 else nn.Conv2d(width, to, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(self.conv(x)) + self.short(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(self.Block(4, 4), self.Block(4, 4))
        self.layer2 = nn.Sequential(self.Block(4, 8, 2), self.Block(8, 8), self.Block(8, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Slow(nn.Module):
    """A residual block that is large enough to be timed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, 2048), nn.Linear(2048, 256)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Rnn(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.rnn = kind(5, 8, num_layers=4, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Gnn(nn.Module):
    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return x + self.linear(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])).relu()

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(4, 8), nn.Linear(8, CLASSES)
        self.passes = nn.ModuleList(self.Pass() for _ in range(3))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        hidden = self.enter(x)
        for step in self.passes:
            hidden = step(hidden, edge_index)
        graphs = int(batch.max()) + 1
        return self.head(hidden.new_zeros(graphs, 8).index_add(0, batch, hidden))


def graphs() -> dict[str, Tensor]:
    nodes = [3 + n % 3 for n in range(SAMPLES)]
    batch = torch.repeat_interleave(torch.arange(SAMPLES), torch.tensor(nodes))
    starts = np.cumsum([0, *nodes[:-1]])
    chains = [(s + i, s + i + 1) for s, n in zip(starts, nodes, strict=True) for i in range(n - 1)]
    edges = torch.tensor(chains).T
    return {
        "x": torch.randn(len(batch), 4, generator=torch.Generator().manual_seed(5)),
        "edge_index": torch.cat((edges, edges.flip(0)), 1),
        "batch": batch,
        "labels": draw(SAMPLES),
    }


def bert(kind: str = "BertForSequenceClassification") -> nn.Module:
    return getattr(transformers, kind)(transformers.BertConfig(vocab_size=50, num_labels=CLASSES, **SIZES))


def questions() -> nn.Module:
    return transformers.BertForQuestionAnswering(transformers.BertConfig(vocab_size=50, **SIZES))


def mlp() -> nn.Module:
    inner = [nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)) for _ in range(3)]
    return nn.Sequential(nn.Linear(4, 6), *inner, nn.Linear(6, CLASSES))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, num_key_value_heads=1, **SIZES))


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def whisper() -> nn.Module:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    special = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=2, decoder_layers=3, num_mel_bins=4, max_source_positions=10,
        max_target_positions=20, **heads, **special,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16], depths=[2, 2], num_encoder_blocks=2, num_attention_heads=[1, 2], sr_ratios=[2, 1],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def boxes(output: Tensor, labels: Tensor) -> Tensor:
    return F.smooth_l1_loss(output, labels, reduction="none").mean(1)


def retrieval() -> dict[str, Any]:
    return {"task": Retrieval(candidates=torch.randn(9, 16, generator=torch.Generator().manual_seed(6)))}


Case = tuple[Callable[[], nn.Module], str, str, Any, dict[str, Any]]
CASES: dict[str, Case] = {
    "text": (bert, "classification", "text", {**TEXT, "labels": draw(SAMPLES)}, {}),
    "language model": (llama, "generation", "text", TEXT, {}),
    "retrieval": (lambda: bert("BertModel"), "retrieval", "text", ({**TEXT}, draw(SAMPLES, most=9)), retrieval()),
    "recommendation": (mlp, "recommendation", "tabular", (torch.randn(SAMPLES, 4), draw(SAMPLES)), {}),
    "detection": (Cnn, "detection", "vision", (PICTURES, torch.rand(SAMPLES, 3)), {"task": OwnLoss(loss=boxes)}),
    "segmentation": (segformer, "segmentation", "vision", (PICTURES, draw(SAMPLES, 16, 16)), {}),
    "translation": (t5, "translation", "text", {**TEXT, "labels": IDS[:, :5]}, {}),
    "speech": (
        whisper,
        "summarisation",
        "audio",
        {"input_features": torch.randn(SAMPLES, 4, 20), "labels": IDS[:, :5]},
        {},
    ),
    "questions": (questions, "question_answering", "text", ({**TEXT}, draw(SAMPLES, 2)), {}),
    "policy": (mlp, "reinforcement_learning", "tabular", (torch.randn(SAMPLES, 4), draw(SAMPLES)), {}),
    "pictures": (Cnn, "classification", "vision", (PICTURES, draw(SAMPLES)), {}),
    "lstm": (Rnn, "classification", "audio", (torch.randn(SAMPLES, 6, 5), draw(SAMPLES)), {}),
    "gru": (lambda: Rnn(nn.GRU), "classification", "audio", (torch.randn(SAMPLES, 6, 5), draw(SAMPLES)), {}),
    "graphs": (Gnn, "classification", "graph", graphs(), {}),
}


def analyzer_of(name: str, methods: tuple[str, ...] = QUICK) -> tuple[LayerAnalyzer, nn.Module, Any]:
    make, task, modality, batch, more = CASES[name]
    torch.manual_seed(0)
    model = make()
    found = create_analyzer(task_type=task, modality_type=modality, analysis_methods=methods, **more)
    found.load_model(model)
    return found, model, batch


class Residual(nn.Module):
    """A block of several ways to be written, by ``kind``."""

    def __init__(self, width: int = 8, kind: str = "plain") -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Any, *more: Any, hidden: Any = None) -> Any:
        match self.kind:
            case "attention":
                return x + self.attention(x, x, x)[0]
            case "keyword":
                return hidden + self.linear(hidden).tanh() * x[:, None, None]
            case "output":
                return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=x + self.linear(x).tanh())
            case "memory":
                return x + self.linear(more[0]).tanh(), more[0] + x
            case "from before":
                return more[0] + self.linear(x).tanh()
            case "outside" | "outside in place" | "outside after a norm":
                return self.linear(x).tanh()
        return x + self.linear(x).tanh()


class Stacked(nn.Module):
    """Blocks called in one of these ways, with a mean and a classifier behind them."""

    def __init__(self, kind: str, layers: int = 4) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(8)
        self.blocks = nn.ModuleList(Residual(kind=kind) for _ in range(layers))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden, memory, scale = x, x, torch.ones(len(x))
        before: list[Tensor] = []
        for place, block in enumerate(self.blocks):
            match self.kind:
                case "keyword":
                    hidden = block(scale, hidden=hidden)
                case "output":
                    hidden = block(hidden).last_hidden_state
                case "memory":
                    hidden, memory = block(hidden, memory)
                case "from before":
                    hidden = block(self.norm(hidden), hidden)
                case "outside":
                    hidden = hidden + block(hidden)
                case "outside in place":
                    hidden = hidden.clone() if place == 0 else hidden
                    hidden += block(hidden)
                case "outside after a norm":
                    hidden = hidden + block(self.norm(hidden))
                case "skips":
                    before.append(hidden)
                    hidden = block(hidden + before[0] if place > 1 else hidden)
                case _:
                    hidden = block(hidden)
        return self.head(F.relu_(hidden).mean(1))


SEQUENCES = torch.randn(SAMPLES, 6, 8, generator=torch.Generator().manual_seed(7))
