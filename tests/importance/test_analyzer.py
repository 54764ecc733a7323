"""Any model, from a loader to a ranking, a plan, a smaller model and its ONNX file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from any_models import (
    CASES,
    CLASSES,
    IDS,
    QUICK,
    SAMPLES,
    SEQUENCES,
    SIZES,
    TEXT,
    Cnn,
    Rnn,
    Stacked,
    analyzer_of,
    bert,
    draw,
    llama,
    transformers,
)
from torch import Tensor, nn

from fathom.errors import ArtefactError, ConfigError, DataError, NotApplicableError, OutputError
from fathom.importance import registry
from fathom.importance.analyzer import AnalysisConfig, TaskType, create_analyzer
from fathom.importance.inputs import Inputs
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.models.stacks import Stack
from fathom.importance.tasks.many_labels import Generation


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
        assert set(ranking.left_out) <= {"attention"}


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


def by_hand(model: Stacked, layer: int, labels: Tensor) -> float:
    """The rise of the loss when a block is replaced by one that hands on its input."""
    with torch.no_grad():
        whole = F.cross_entropy(model(SEQUENCES), labels)
        block = model.blocks[layer]
        block.forward = lambda x, *_, hidden=None: x if hidden is None else hidden
        if "outside" in model.kind:
            block.forward = torch.zeros_like
        if model.kind == "output":
            block.forward = lambda x: transformers.modeling_outputs.BaseModelOutput(last_hidden_state=x)
        without = F.cross_entropy(model(SEQUENCES), labels)
        del block.forward
    return (without - whole).item()


@pytest.mark.parametrize("kind", ["plain", "attention", "keyword", "output", "outside", "outside in place"])
def test_however_a_block_is_called_leaving_it_out_is_what_it_is_by_hand(kind: str) -> None:
    torch.manual_seed(1)
    model, labels = Stacked(kind), draw(SAMPLES)
    analyzer = create_analyzer(analysis_methods=("ablation",))
    analyzer.load_model(model)
    scores = analyzer.analyze_importance([(SEQUENCES, labels.tolist())]).methods["ablation"].scores
    expected = [by_hand(model, layer, labels) for layer in range(4)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert min(map(abs, expected)) > 1e-5
    plan = analyzer.generate_compression_plan(target_ratio=1.9)
    assert plan.report()["loss"]["after"] == pytest.approx(plan.loss_after, abs=1e-5)


@pytest.mark.parametrize("kind", ["memory", "from before", "outside after a norm", "skips"])
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


def test_a_model_in_half_precision_is_ranked_by_every_method() -> None:
    scores = {}
    for kind in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        analyzer = create_analyzer(analysis_methods=("all",))
        analyzer.load_model(Stacked("plain").to(kind))
        ranking = analyzer.analyze_importance([(SEQUENCES.to(kind), draw(SAMPLES))])
        assert set(ranking.left_out) <= {"attention"}
        scores[kind] = np.array(ranking.methods["ablation"].scores)
    outside = Stacked("outside").bfloat16()
    assert "call model.float()" in refusal(outside, (SEQUENCES.bfloat16(), draw(SAMPLES)))
    np.testing.assert_allclose(scores[torch.bfloat16], scores[torch.float32], atol=0.02)
