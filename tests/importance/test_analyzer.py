"""Any model, from a loader to a ranking, a plan, a smaller model and its ONNX file."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.errors import ArtefactError, ConfigError, DataError, NotApplicableError, OutputError
from fathom.importance import registry
from fathom.importance.analyzer import AnalysisConfig, LayerAnalyzer, TaskType, create_analyzer
from fathom.importance.compression import CompressionPlan, Measured, weights_mb
from fathom.importance.inputs import Inputs
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.models.distillation import Distillation
from fathom.importance.models.stacks import Stack
from fathom.importance.tasks.many_labels import Generation
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


@pytest.mark.parametrize("name", CASES)
def test_each_task_and_modality_is_ranked_and_made_smaller(name: str) -> None:
    analyzer, model, batch = analyzer_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ranking = analyzer.analyze_importance([batch])
    count = ranking.layers
    assert ranking.users == SAMPLES
    assert len(set(ranking.layer_names)) == count >= 2
    plan = analyzer.generate_compression_plan(target_ratio=count / (count - 1) - 0.05)
    assert len(plan.keep) < count
    assert plan.ratio > 1
    assert {*plan.kept, *plan.left_out} == set(ranking.layer_names)
    smaller = plan.apply()
    inputs = analyzer._batches[0].inputs
    with torch.no_grad():
        losses = [analyzer.config.judged_by.losses(b.inputs.call(smaller), b.labels) for b in analyzer._batches]
    assert torch.cat(losses).mean().item() == pytest.approx(plan.loss_after, rel=1e-3, abs=1e-4)
    assert inputs is not None
    # The model that was given is as it was.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "forward" not in vars(model)


@pytest.mark.parametrize("name", ["text", "pictures", "lstm", "graphs"])
def test_what_is_exported_gives_in_onnxruntime_what_torch_gives_for_any_number_of_samples(
    name: str, tmp_path: Path
) -> None:
    analyzer, _, batch = analyzer_of(name)
    analyzer.analyze_importance([batch])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    assert plan.export(tmp_path / "model.onnx") < 1e-4
    if name == "graphs":
        return
    inputs, smaller = analyzer._batches[0].inputs, plan.apply()
    few = analyzer.layers.collation.part(inputs, 0, 2)
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    names = [each.name for each in session.get_inputs()]
    tensors = [*few.args, *(value for value in few.kwargs.values() if isinstance(value, Tensor))]
    (found,) = session.run(None, {key: value.numpy() for key, value in zip(names, tensors, strict=True)})
    with torch.no_grad():
        expected = few.call(smaller)
    np.testing.assert_allclose(found, getattr(expected, "logits", expected).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["text", "language model", "pictures"])
def test_every_method_ranks_or_says_why_not(name: str) -> None:
    analyzer, _, batch = analyzer_of(name, ("all",))
    ranking = analyzer.analyze_importance([batch])
    assert set(ranking.methods) | set(ranking.left_out) == set(registry.method_names())
    if name == "pictures":
        assert {"ablation", "fisher", "gradient", "shapley", "greedy_elimination"} <= set(ranking.methods)
        assert {"activation", "block_influence", "gradient_flow"} <= set(ranking.methods)
        assert "the hidden state changes its shape on the way" in ranking.left_out["cka"]
    else:
        assert not ranking.left_out


@pytest.mark.parametrize("name", ["text", "language model", "translation", "segmentation"])
def test_an_answer_has_the_same_vector_in_every_batch(name: str) -> None:
    analyzer, _, batch = analyzer_of(name, ("ablation",))
    analyzer.analyze_importance([batch])
    task = analyzer.layers.task
    labels = analyzer._batches[0].labels
    together = task.targets(labels)
    for row in range(len(labels)):
        alone = task.targets(labels[row : row + 1])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone)
        assert not together[row, len(alone) :].any()
    # And not all are alike.
    assert len(together.unique(dim=0)) > 1


def test_methods_of_answers_take_batches_with_different_labels() -> None:
    analyzer, _, batch = analyzer_of("text", ("mutual_information", "information_bottleneck"))
    order = batch["labels"].argsort()
    sorted_batch = {name: value[order] for name, value in batch.items()}
    parts = [{name: value[start : start + 4] for name, value in sorted_batch.items()} for start in (0, 4, 8)]
    assert len({int(part["labels"].max()) for part in parts}) > 1
    together = analyzer.analyze_importance([sorted_batch])
    apart = analyzer.analyze_importance(parts)
    for name, scores in together.methods.items():
        assert apart.methods[name].scores == pytest.approx(scores.scores, abs=1e-4)


def test_what_a_layer_does_to_the_state_is_measured_at_its_own_shape() -> None:
    analyzer, model, batch = analyzer_of("pictures", ("block_influence", "activation"))
    ranking = analyzer.analyze_importance([batch])
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str) -> Callable[..., None]:
        return lambda _module, given, left: seen.update({name: (given[0], left)})

    for name in ranking.layer_names:
        model.get_submodule(name).register_forward_hook(look(name))
    with torch.no_grad():
        model(batch[0])
    assert len({given.shape for given, _ in seen.values()}) == 2
    for layer, name in enumerate(ranking.layer_names):
        given, left = seen[name]
        turned = 1 - F.cosine_similarity(given, left, dim=1)
        assert ranking.methods["block_influence"].scores[layer] == pytest.approx(turned.mean().item(), rel=1e-4)
        added = (left - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)
        assert ranking.methods["activation"].scores[layer] == pytest.approx(added.mean().item(), rel=1e-4)


def test_skipping_by_hand_gives_the_ablation_s_score() -> None:
    analyzer, model, batch = analyzer_of("text", ("ablation",))
    ranking = analyzer.analyze_importance([batch])
    block = model.bert.encoder.layer[1]
    own, block.forward = block.forward, lambda hidden, *_, **__: hidden
    with torch.no_grad():
        without = F.cross_entropy(model(**TEXT).logits, batch["labels"])
        block.forward = own
        whole = F.cross_entropy(model(**TEXT).logits, batch["labels"])
    assert ranking.methods["ablation"].scores[1] == pytest.approx((without - whole).item(), abs=1e-5)


def test_a_classifier_that_reads_its_first_token_is_looked_at_there() -> None:
    analyzer, _, batch = analyzer_of("text")
    analyzer.analyze_importance([batch])
    layers, own = analyzer.layers, analyzer._batches[0]
    assert own.layouts[0].flipped
    assert layers.real_positions(own)[1].tolist() == [False, False, True, True, True, True, True]
    other, _, batch = analyzer_of("language model")
    other.analyze_importance([batch])
    assert not other._batches[0].layouts[0].flipped


def test_texts_go_through_the_tokenizer_and_only_so_many_are_measured() -> None:
    def tokenizer(texts: list[str], **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[5 + len(text)] * 4 for text in texts])}

    analyzer = create_analyzer(task_type="classification", analysis_methods=QUICK, samples=5)
    analyzer.load_model(bert(), tokenizer=tokenizer)
    loader = [(["a", "bb", "ccc"], torch.tensor([0, 1, 2]))] * 4
    assert analyzer.analyze_importance(loader).users == 5


def test_a_ranking_of_any_model_can_be_stored(tmp_path: Path) -> None:
    analyzer, _, batch = analyzer_of("text")
    ranking = analyzer.analyze_importance([batch])
    ranking.save(tmp_path / "ranking.json")
    assert LayerRanking.load(tmp_path / "ranking.json") == ranking
    assert ranking.layer_names[0] == "bert.encoder.layer.0"


def test_own_methods_and_tasks_are_taken() -> None:
    class Place:
        def scores(self, model: Any, batches: Any, generator: torch.Generator) -> Tensor:  # noqa: ARG002
            rows = sum(model.samples(batch) for batch in batches)
            return torch.arange(len(model.layers)).float().repeat(rows, 1)

    registry.add_method("place", Place)
    try:
        analyzer, _, batch = analyzer_of("text", ("place",))
        assert analyzer.analyze_importance([batch]).consensus_order == (3, 2, 1, 0)
        with pytest.raises(ConfigError, match="'place' is there already"):
            registry.add_method("place", Place)
    finally:
        registry.remove_method("place")


def refusal(model: nn.Module, batch: Any, task: str = "classification", **more: Any) -> str:
    analyzer = create_analyzer(task_type=task, analysis_methods=QUICK, **more)
    with pytest.raises((ConfigError, ArtefactError, DataError, NotApplicableError)) as refused:
        analyzer.load_model(model)
        analyzer.analyze_importance([] if batch is None else [batch])
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_wrong_input_gets_one_line() -> None:
    labelled = {**TEXT, "labels": draw(SAMPLES)}
    assert "no repeated blocks" in refusal(nn.Sequential(nn.Linear(4, 3)), (torch.randn(4, 4), draw(4)))
    assert "the loader gives no labels" in refusal(bert(), TEXT)
    assert "needs logits (samples, places" in refusal(bert(), TEXT, "generation")
    assert "no start_logits" in refusal(bert(), {**TEXT, "labels": draw(SAMPLES, 2)}, "question_answering")
    assert "outside of the model's 3 answers" in refusal(bert(), {**TEXT, "labels": draw(SAMPLES) + 5})
    assert "no sample" in refusal(bert(), None)
    with torch.device("meta"):
        assert "on no device" in refusal(bert(), labelled)
    one = transformers.BertConfig(vocab_size=50, num_labels=CLASSES, **(SIZES | {"num_hidden_layers": 1}))
    assert "no repeated blocks" in refusal(transformers.BertForSequenceClassification(one), labelled)
    broken = bert()
    with torch.no_grad():
        broken.bert.encoder.layer[2].output.dense.weight.fill_(torch.nan)
    assert "NaN" in refusal(broken, labelled)
    quantised = bert()
    quantised.bert.pooler.dense.weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    assert "quantised" in refusal(quantised, labelled)


def test_unknown_names_get_one_line() -> None:
    for change, text in (
        ({"task_type": "chess"}, "unknown task 'chess'; known: classification"),
        ({"modality_type": "smell"}, "unknown modality 'smell'; known: text"),
        ({"samples": 1}, "needs at least 2"),
        ({"speed": 1}, "unknown setting 'speed'"),
    ):
        with pytest.raises(ConfigError, match=text):
            create_analyzer(**change)
    with pytest.raises(ConfigError, match="call load_model first"):
        create_analyzer().analyze_importance([TEXT])
    analyzer, _, batch = analyzer_of("text")
    with pytest.raises(ConfigError, match="call analyze_importance first"):
        analyzer.generate_compression_plan()
    analyzer.analyze_importance([batch])
    for ratio in (1.0, 9.0, float("nan")):
        with pytest.raises(ConfigError, match="ratio"):
            analyzer.generate_compression_plan(target_ratio=ratio)
    assert AnalysisConfig().task_type is TaskType.CLASSIFICATION


def test_layers_that_are_calls_of_one_block_are_ranked_and_cannot_be_taken_out() -> None:
    config = transformers.AlbertConfig(vocab_size=50, embedding_size=8, num_labels=CLASSES, **SIZES)
    analyzer = create_analyzer(analysis_methods=("ablation", "all"))
    analyzer.load_model(transformers.AlbertForSequenceClassification(config))
    ranking = analyzer.analyze_importance([{**TEXT, "labels": draw(SAMPLES)}])
    assert ranking.layers == 4
    assert "layers share parameters" in ranking.left_out["gradient"]
    with pytest.raises(ConfigError, match="calls of one block"):
        analyzer.generate_compression_plan(target_ratio=2.0)


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
            case "outside":
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
                case "skips":
                    before.append(hidden)
                    hidden = block(hidden + before[0] if place > 1 else hidden)
                case _:
                    hidden = block(hidden)
        return self.head(F.relu_(hidden).mean(1))


SEQUENCES = torch.randn(SAMPLES, 6, 8, generator=torch.Generator().manual_seed(7))


def by_hand(model: Stacked, layer: int, labels: Tensor) -> float:
    """The rise of the loss when a block is replaced by one that hands on its input."""
    with torch.no_grad():
        whole = F.cross_entropy(model(SEQUENCES), labels)
        block = model.blocks[layer]
        block.forward = lambda x, *_, hidden=None: x if hidden is None else hidden
        if model.kind == "output":
            block.forward = lambda x: transformers.modeling_outputs.BaseModelOutput(last_hidden_state=x)
        without = F.cross_entropy(model(SEQUENCES), labels)
        del block.forward
    return (without - whole).item()


@pytest.mark.parametrize("kind", ["plain", "attention", "keyword", "output"])
def test_however_a_block_is_called_leaving_it_out_is_what_it_is_by_hand(kind: str) -> None:
    torch.manual_seed(1)
    model, labels = Stacked(kind), draw(SAMPLES)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    scores = analyzer.analyze_importance([(SEQUENCES, labels.tolist())]).methods["ablation"].scores
    expected = [by_hand(model, layer, labels) for layer in range(4)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert min(map(abs, expected)) > 1e-5
    analyzer.generate_compression_plan(target_ratio=1.9).apply()


@pytest.mark.parametrize("kind", ["memory", "from before", "outside", "skips"])
def test_what_passes_beside_the_hidden_state_is_noticed(kind: str) -> None:
    torch.manual_seed(1)
    assert "beside the hidden state" in refusal(Stacked(kind), (SEQUENCES, draw(SAMPLES)))


def test_a_model_that_reads_the_last_states_of_a_recurrent_module_is_refused() -> None:
    class LastState(Rnn):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[1][0][-1])

    torch.manual_seed(0)
    assert "beside the hidden state" in refusal(LastState(), (torch.randn(SAMPLES, 6, 5), draw(SAMPLES)))


def test_torch_s_own_transformer_is_ranked_and_its_padding_known() -> None:
    class Encoder(nn.Module):
        def __init__(self, *, batch_first: bool) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
            self.encoder, self.head = (
                nn.TransformerEncoder(layer, 3, enable_nested_tensor=batch_first),
                nn.Linear(8, CLASSES),
            )
            self.first = 0 if batch_first else 1

        def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
            x = x if self.first == 0 else x.transpose(0, 1)
            return self.head(self.encoder(x, src_key_padding_mask=padding_mask).mean(1 - self.first))

    torch.manual_seed(0)
    padding = torch.zeros(SAMPLES, 6, dtype=torch.bool)
    padding[1, 4:] = True
    analyzer = create_analyzer(analysis_methods=QUICK)
    analyzer.load_model(Encoder(batch_first=True))
    analyzer.analyze_importance([{"x": SEQUENCES, "padding_mask": padding, "labels": draw(SAMPLES)}])
    real = torch.cat([analyzer.layers.real_positions(batch) for batch in analyzer._batches])
    assert torch.equal(real, ~padding)
    # As many samples as positions: which axis is which, the layer says.
    analyzer.load_model(Encoder(batch_first=False))
    analyzer.analyze_importance([(SEQUENCES[:6], draw(6))])
    assert {batch.layouts[0].form for batch in analyzer._batches} == {"time first"}


def test_what_belongs_to_no_sample_is_not_cut_in_silence() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(self.Block() for _ in range(3))

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(8, 8)

            def forward(self, x: Tensor, weights: Tensor) -> Tensor:
                return x + torch.einsum("tu,buw->btw", weights[-1:].expand(6, 6), self.linear(x).tanh())

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x, weights)
            return x.mean(1)[:, :CLASSES]

    torch.manual_seed(0)
    given = {"x": SEQUENCES[:6], "weights": torch.randn(6, 6), "labels": draw(6)}
    assert "a sample alone has another loss" in refusal(Masked(), given)


def test_a_plan_takes_what_fits_however_large_the_layers_are() -> None:
    sizes = (64, 2, 2, 2)

    class Wide(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, inner), nn.Linear(inner, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).tanh())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*map(Wide, sizes)), nn.Linear(8, CLASSES))
    analyzer = create_analyzer(analysis_methods=QUICK)
    analyzer.load_model(model)
    analyzer.analyze_importance([(SEQUENCES[:, 0], draw(SAMPLES))])
    assert 0 not in analyzer.generate_compression_plan(target_ratio=3).keep
    # Exactly so many are allowed.
    many = nn.Sequential(nn.Sequential(*(Wide(4) for _ in range(11))), nn.Linear(8, CLASSES))
    analyzer.load_model(many)
    analyzer.analyze_importance([(SEQUENCES[:, 0], draw(SAMPLES))])
    assert len(analyzer.generate_compression_plan(target_ratio=1.1).keep) == 10


def test_a_plan_for_more_layers_than_an_integer_has_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*(Residual(4) for _ in range(66))), nn.Linear(4, CLASSES))
    for block in model[0]:
        block.attention = nn.Identity()
    analyzer = create_analyzer(analysis_methods=("block_influence",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(torch.randn(4, 4), draw(4))])
    assert len(analyzer.generate_compression_plan(target_ratio=1.02).keep) == 64


def test_a_sequential_of_matrices_is_a_layer_and_no_stage() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = (nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
            self.layers = nn.ModuleList(nn.Sequential(*parts) for _ in range(3))
            self.ConvBnAct = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.ConvBnAct(x)

    analyzer = create_analyzer(analysis_methods=QUICK)
    analyzer.load_model(Inside())
    assert analyzer.layers.stack is not None
    assert analyzer.layers.stack.path == "layers.#"


def test_a_forward_that_takes_a_dict_and_other_ways_to_give_a_batch() -> None:
    class FromDict(Stacked):
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            return super().forward(features["x"])

    labels = draw(SAMPLES)
    analyzer = create_analyzer(analysis_methods=QUICK)
    analyzer.load_model(FromDict("plain"))
    analyzer.analyze_importance([(Inputs(({"x": SEQUENCES},)), labels.int())])
    analyzer.load_model(Stacked("plain"))
    analyzer.analyze_importance([(SEQUENCES.numpy(), labels.numpy())])
    language = create_analyzer(task_type="generation", analysis_methods=QUICK)
    language.load_model(llama())
    assert language.analyze_importance([[IDS]]).users == SAMPLES


def test_a_model_of_transformers_keeps_its_attention_and_a_smaller_one_its_cache() -> None:
    analyzer, model, batch = analyzer_of("language model")
    before = model.config._attn_implementation
    analyzer.analyze_importance([batch])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    smaller = plan.apply()
    assert model.config._attn_implementation == smaller.config._attn_implementation == before
    assert smaller.config.num_hidden_layers == len(plan.keep)
    with torch.no_grad():
        begun = smaller(IDS[:, :4], use_cache=True)
        rest = smaller(IDS[:, 4:], past_key_values=begun.past_key_values).logits
        torch.testing.assert_close(rest, smaller(IDS).logits[:, 4:], atol=1e-4, rtol=1e-4)


def test_a_model_s_own_error_is_told_in_one_line() -> None:
    text = refusal(Cnn(), (torch.randn(SAMPLES, 3), draw(SAMPLES)))
    assert text.startswith("the model cannot run this batch: RuntimeError")
    assert "has no parameters" in refusal(nn.Identity(), (torch.randn(4, 3), draw(4)))
    with pytest.raises(ConfigError, match="no such layer"):
        Stack.of(Cnn(), ["layer9"])


def trained(model: nn.Module, x: Tensor, labels: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def test_healing_makes_up_for_layers_that_are_gone_and_leaves_both_models_alone() -> None:
    torch.manual_seed(2)
    x = torch.randn(96, 6, 8)
    labels = (x.mean((1, 2)) > 0).long() + (x[:, 0, 0] > 0.5)
    model = trained(Stacked("plain"), x[:64], labels[:64])
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(x[64:], labels[64:])])
    plan = analyzer.generate_compression_plan(target_ratio=3.5)
    smaller = plan.apply()
    before = [value.clone() for value in (*model.parameters(), *smaller.parameters())]
    other = [(x[:32], labels[:32]), (x[32:64], labels[32:64])]
    how = Distillation(epochs=20, learning_rate=0.01)
    healed = plan.heal(analyzer.batches_of(other), how, model=smaller)
    told = plan.report(smaller), plan.report(healed)
    assert told[1]["loss"]["after"] < told[0]["loss"]["after"]
    assert told[0]["loss"]["after"] == pytest.approx(plan.loss_after, abs=1e-4)
    assert all(torch.equal(*pair) for pair in zip((*model.parameters(), *smaller.parameters()), before, strict=True))
    again = plan.heal(analyzer.batches_of(other), how, model=smaller)
    assert all(torch.equal(*pair) for pair in zip(healed.parameters(), again.parameters(), strict=True))
    assert not healed.training
    with pytest.raises(DataError, match="no batch to heal"):
        plan.heal([])
    with pytest.raises(ConfigError, match="healing needs epochs from 1"):
        Distillation(epochs=0)


@pytest.mark.parametrize(
    "name", ["language model", "questions", "segmentation", "detection", "translation", "retrieval"]
)
def test_every_task_can_be_healed(name: str) -> None:
    analyzer, _, batch = analyzer_of(name, ("ablation",))
    analyzer.analyze_importance([batch])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    healed = plan.heal(analyzer.batches_of([batch]), Distillation(epochs=15, learning_rate=3e-3))
    assert plan.report(healed)["loss"]["after"] < plan.report()["loss"]["after"]


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_any_number_of_steps_heals(steps: int) -> None:
    torch.manual_seed(0)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Cnn())
    analyzer.analyze_importance([(PICTURES, draw(SAMPLES))])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    shares: list[float] = []
    # Batches of one picture, which a batch norm in training refuses.
    loader = [(PICTURES[:1], draw(1))] * steps
    healed = plan.heal(analyzer.batches_of(loader), Distillation(progress=lambda share, _: shares.append(share)))
    assert shares == [pytest.approx((step + 1) / steps) for step in range(steps)]
    assert all(torch.isfinite(value).all() for value in healed.state_dict().values())


def test_answers_that_cannot_be_given_do_not_spoil_healing() -> None:
    class Masked(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).index_fill(1, torch.tensor([2]), -torch.inf)

    torch.manual_seed(0)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    model = Masked("plain")
    model.blocks[0].requires_grad_(False)
    analyzer.load_model(model)
    analyzer.analyze_importance([(SEQUENCES, draw(SAMPLES, most=2))])
    plan = CompressionPlan(analyzer.generate_compression_plan(target_ratio=1.3).measured, (0, 1, 2), 0.0, 0.0)
    healed = plan.heal(analyzer.batches_of([(SEQUENCES, draw(SAMPLES, most=2))]))
    assert torch.equal(healed.blocks[0].linear.weight, model.blocks[0].linear.weight)
    assert not torch.equal(healed.blocks[1].linear.weight, model.blocks[1].linear.weight)
    assert [value.requires_grad for value in healed.blocks[0].parameters()] == [False] * 6


def test_both_ends_of_an_answer_are_exported(tmp_path: Path) -> None:
    analyzer, _, batch = analyzer_of("questions", ("ablation",))
    analyzer.analyze_importance([batch])
    analyzer.generate_compression_plan(target_ratio=1.3).export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    assert [each.name for each in session.get_outputs()] == ["start_logits", "end_logits"]


def test_a_model_that_cannot_be_exported_is_written_all_the_same(tmp_path: Path) -> None:
    class Branching(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if float(x.sum()) > 0 else 2.0)

    analyzer = create_analyzer(analysis_methods=("ablation",))
    torch.manual_seed(0)
    analyzer.load_model(Branching("plain"))
    analyzer.analyze_importance([(SEQUENCES, draw(SAMPLES))])
    plan = analyzer.generate_compression_plan(target_ratio=1.3)
    with pytest.raises(ConfigError, match="is written without model"):
        plan.save(tmp_path / "small", onnx=True)
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"compression.json", "model.safetensors"}
    # Written again, since all of it is ours; not with a file of somebody else.
    plan.save(tmp_path / "small")
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        plan.save(tmp_path / "small")


def test_the_layers_context_may_be_entered_twice() -> None:
    analyzer, model, _ = analyzer_of("language model")
    before = model.config._attn_implementation
    with analyzer.layers, analyzer.layers:
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == before


def test_a_task_of_one_s_own_settings_says_what_it_needs() -> None:
    analyzer = create_analyzer(task=Generation(), analysis_methods=QUICK)
    analyzer.load_model(llama())
    assert analyzer.analyze_importance([TEXT]).users == SAMPLES


def test_a_plan_for_a_memory_or_a_quality_keeps_what_it_promises() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Sequential(*(Slow() for _ in range(8))), nn.Linear(256, CLASSES))
    analyzer = create_analyzer(analysis_methods=("ablation", "greedy_elimination"))
    analyzer.load_model(wide)
    inputs = torch.randn(64, 256)
    # What the whole model says is right, so that it has a quality to keep.
    analyzer.analyze_importance([(inputs, wide(inputs).argmax(1))])
    measured = Measured(analyzer.layers, analyzer._batches)
    whole = weights_mb(wide)
    for share in (0.3, 0.6, 0.9):
        plan = analyzer.generate_compression_plan(memory_mb=share * whole)
        assert share * whole - whole / 8 < weights_mb(plan.apply()) <= share * whole
    kept = {}
    for share in (0.2, 0.9):
        plan = analyzer.generate_compression_plan(min_quality=share)
        accuracy = measured.quality(plan.apply())[1]["accuracy"]
        assert accuracy >= share
        kept[share] = len(plan.keep)
        # One layer fewer does not.
        if kept[share] > 1:
            fewer = analyzer.generate_compression_plan(target_ratio=8 / (kept[share] - 1))
            assert measured.quality(fewer.apply())[1]["accuracy"] < share
    assert kept[0.2] < kept[0.9] < 8


class Waiting(nn.Module):
    """A block that takes three milliseconds on any machine."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.003)
        return x + self.linear(x)


def test_a_plan_for_a_latency_has_as_many_layers_as_fit() -> None:
    model = nn.Sequential(nn.Sequential(*(Waiting() for _ in range(8))), nn.Linear(4, CLASSES))
    analyzer = create_analyzer(analysis_methods=("block_influence", "greedy_elimination"))
    analyzer.load_model(model)
    analyzer.analyze_importance([(torch.randn(4, 4), draw(4))])
    plan = analyzer.generate_compression_plan(latency_ms=15)
    # Fewer only on a machine that is busy with something else.
    assert 1 <= len(plan.keep) <= 4
    assert plan.report()["latency_ms"]["before"] >= 24


def test_a_quality_is_searched_among_the_models_that_healing_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(*(Slow() for _ in range(4))), nn.Linear(256, CLASSES))
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    inputs = torch.randn(64, 256)
    labels = model(inputs).argmax(1)
    analyzer.analyze_importance([(inputs, labels)])
    how = Distillation(epochs=60, learning_rate=1e-2, imitation=0.0)
    made: list[tuple[int, ...]] = []

    def healed(plan: CompressionPlan) -> nn.Module:
        made.append(plan.keep)
        return plan.heal(analyzer.batches_of([(inputs, labels)]), how)

    plan = analyzer.generate_compression_plan(min_quality=0.99, make=healed)
    assert len(plan.keep) == 1
    assert len(made) == 2
    with pytest.raises(ConfigError, match=r"without any layer less than 0\.99 of the accuracy stays"):
        analyzer.generate_compression_plan(min_quality=0.99)


def test_layers_of_unequal_sizes_are_searched_by_their_number() -> None:
    class Sized(nn.Module):
        def __init__(self, inner: int, share: float) -> None:
            super().__init__()
            self.up, self.down, self.share = nn.Linear(8, inner), nn.Linear(inner, 8), share

        def forward(self, x: Tensor) -> Tensor:
            return x + self.share * self.down(self.up(x).relu())

    torch.manual_seed(0)
    # The large one matters, the small ones do nothing.
    blocks = [Sized(4, 0.0), Sized(4, 0.0), Sized(4, 0.0), Sized(400, 20.0)]
    model = nn.Sequential(nn.Sequential(*blocks), nn.Linear(8, CLASSES))
    inputs = torch.randn(64, 8)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    analyzer.analyze_importance([(inputs, model(inputs).argmax(1))])
    assert analyzer.generate_compression_plan(min_quality=0.99).keep == (3,)


def test_weights_of_several_sizes_and_such_as_are_shared_are_weighed_as_they_are() -> None:
    class Model(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    for name in ("mixed", "tied"):
        torch.manual_seed(0)
        model = Model(nn.Sequential(*(Slow() for _ in range(6))), nn.Linear(256, CLASSES))
        if name == "mixed":
            for block in model[0][3:]:
                block.to(torch.bfloat16).register_forward_pre_hook(lambda _, given: (given[0].bfloat16(),))
                block.register_forward_hook(lambda _module, _given, left: left.float())
        else:
            model.other = model[0][5].up
        analyzer = create_analyzer(analysis_methods=("ablation", "greedy_elimination"))
        analyzer.load_model(model)
        analyzer.analyze_importance([(torch.randn(16, 256), draw(16))])
        for share in (0.9, 0.5, 0.3):
            plan = analyzer.generate_compression_plan(memory_mb=share * weights_mb(model))
            assert weights_mb(plan.apply()) <= share * weights_mb(model)


def test_a_model_that_reads_its_layers_by_number_is_made_smaller() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.ModuleList(Slow() for _ in range(4)), nn.Linear(256, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for number in range(4):
                x = self.layers[number](x)
            return self.head(x)

    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(Numbered())
    analyzer.analyze_importance([(torch.randn(16, 256), draw(16))])
    plan = analyzer.generate_compression_plan(target_ratio=2)
    assert plan.report()["ratio"] == pytest.approx(2.0)


def test_a_layer_that_others_need_is_no_saving() -> None:
    analyzer, model, batch = analyzer_of("translation", ("ablation",))
    analyzer.analyze_importance([batch])
    limit = weights_mb(model) * 0.95
    plan = analyzer.generate_compression_plan(memory_mb=limit)
    assert weights_mb(plan.apply()) <= limit
    # The first gives the others their positions' biases.
    assert 0 in plan.keep
    bypassed = CompressionPlan(plan.measured, (1,), 0.0, 0.0)
    assert bypassed.report()["ratio"] < bypassed.ratio


def test_a_target_that_cannot_be_had_is_one_line() -> None:
    analyzer, _, batch = analyzer_of("text", ("ablation",))
    analyzer.analyze_importance([batch])
    for given, text in (
        (
            {"target_ratio": 2.0, "memory_mb": 1.0},
            "give one target of ratio, memory_mb, latency_ms, min_quality, not 2",
        ),
        ({"target_ratio": 0.5}, r"ratio is 0\.5; it must be above 1"),
        ({"min_quality": 1.5}, r"min_quality is 1\.5; it must be above 0 and at most 1"),
        ({"latency_ms": float("nan")}, "latency_ms is nan"),
        ({"memory_mb": 1e9}, "already; no layer has to go"),
        ({"memory_mb": 1e-9}, "cannot be had by leaving out"),
        ({"latency_ms": 1e9}, "already; no layer has to go"),
        ({"latency_ms": 1e-9}, "with one layer the model still takes"),
    ):
        with pytest.raises(ConfigError, match=text):
            analyzer.generate_compression_plan(**given)
    own, _, boxes = analyzer_of("detection", ("ablation",))
    own.analyze_importance([boxes])
    with pytest.raises(ConfigError, match="a share of minus_loss cannot stay"):
        own.generate_compression_plan(min_quality=0.9)


def test_methods_are_graded_by_the_lattice_of_the_same_samples(tmp_path: Path) -> None:
    analyzer, _, batch = analyzer_of("text", ("ablation", "shapley"))
    # Some weights have no axis, as the count of a batch norm.
    analyzer.layers.model.register_buffer("count", torch.tensor(3))
    lattice = analyzer.measure_lattice([batch], tmp_path / "lattice")
    assert lattice.is_whole
    assert lattice.losses.shape == (SAMPLES, 2**lattice.layers)
    ranking = analyzer.analyze_importance([batch], lattice=lattice)
    assert ranking.grades["loss"]["shapley"].tau == 1.0
    # What is there is not measured again; other samples are refused.
    written = (tmp_path / "lattice" / "lattice.json").stat().st_mtime_ns
    analyzer.measure_lattice([batch], tmp_path / "lattice")
    assert (tmp_path / "lattice" / "lattice.json").stat().st_mtime_ns == written
    sampled = analyzer.measure_lattice([batch], tmp_path / "sampled", orders=1)
    assert len(sampled.masks) == 2 * lattice.layers
    other = {**batch, "labels": 1 - batch["labels"].clamp(max=1)}
    with pytest.raises(ConfigError, match="another model or other samples"):
        analyzer.analyze_importance([other], lattice=lattice)
    # However alike their losses are.
    analyzer.layers.model.classifier.bias.data += 1e-6
    with pytest.raises(ConfigError, match="another model or other samples"):
        analyzer.analyze_importance([batch], lattice=lattice)
