"""Titles become vectors, and vectors become the start of item embeddings."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.errors import ConfigError, MissingExtraError
from fathom.training import text
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ElasticModel, ModelConfig
from fathom.training.presets import apply_settings, preset
from fathom.training.text import initialise_embeddings, title_vectors
from fathom.training.train import Trainer

WORDS = ["red", "green", "lip", "stick", "nail", "polish", "toy", "car", "track"]


def small_model(items: int, width: int = 8) -> ElasticModel:
    torch.manual_seed(0)
    return ElasticModel(ModelConfig(items=items, width=width, heads=1, layers=1, paths={1: (0,)}))


def unit_rows(items: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(items, width)) * np.linspace(3, 0.1, width) + 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real but tiny BERT with random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **shape))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def test_titles_become_unit_vectors_and_empty_titles_zero_rows(encoder: Path) -> None:
    seen: list[float | None] = []
    found = title_vectors(["red lip stick", "", "toy car", "  "], encoder, lambda _detail, done: seen.append(done))
    assert found.dtype == np.float32
    assert found.shape == (4, 16)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 0, 1, 0])
    assert seen == [None, 1.0]
    assert not title_vectors(["", ""], encoder).any()


def test_a_vector_depends_on_its_title_alone(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, length)) for length in rng.integers(1, 30, 50)]
    together = title_vectors(titles, encoder)
    assert np.array_equal(title_vectors(titles, encoder), together)
    monkeypatch.setattr(text, "BATCH_TOKENS", 1)
    assert np.allclose(title_vectors(titles[::-1], encoder)[::-1], together, atol=1e-5)


def test_a_long_title_is_cut(encoder: Path) -> None:
    long = "red " * 2 * text.MAX_TOKENS
    found = title_vectors([long, long + "car"], encoder)
    assert np.array_equal(found[0], found[1])


@pytest.mark.skipif(importlib.util.find_spec(text.MINILM) is None, reason="needs the extra text")
def test_the_default_encoder_knows_what_is_alike() -> None:
    nail, polish, train = title_vectors(["Red nail varnish", "OPI nail polish", "Wooden railway"])
    assert nail.shape == (384,)
    assert nail @ polish > nail @ train + 0.2


@pytest.mark.parametrize("missing", ["transformers", text.MINILM])
def test_without_the_extra_the_error_names_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(MissingExtraError, match=rf"{missing} .*: pip install 'fathom-recommender\[text\]'"):
        title_vectors(["a title"])


def test_a_folder_without_an_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="no text encoder"):
        title_vectors(["a title"], tmp_path)
    for config in ("not json", '{"model_type": "nothing-we-know"}', '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ConfigError, match="cannot load this text encoder") as caught:
            title_vectors(["a title"], tmp_path)
        assert "\n" not in str(caught.value)


def test_items_start_as_near_to_each_other_as_their_texts() -> None:
    model, vectors = small_model(200), unit_rows(200, 24)
    spread = float(model.embedding.weight[1:].detach().std())
    initialise_embeddings(model, vectors)
    table = model.embedding.weight.detach()
    assert table[1:].std() == pytest.approx(spread, rel=1e-3)
    centred = vectors - vectors.mean(0)
    likeness = np.corrcoef((centred @ centred.T).ravel(), (table[1:] @ table[1:].T).numpy().ravel())[0, 1]
    assert likeness > 0.9


def test_items_without_text_keep_their_random_start() -> None:
    model, vectors = small_model(30), unit_rows(30, 24)
    before = model.embedding.weight.detach().clone()
    vectors[[3, 7]] = 0
    initialise_embeddings(model, vectors)
    kept = (model.embedding.weight == before).all(dim=1)
    assert torch.nonzero(kept).flatten().tolist() == [0, 4, 8]


def test_texts_that_say_nothing_leave_the_model_as_it_is() -> None:
    model = small_model(5)
    before = model.embedding.weight.detach().clone()
    for vectors in (np.zeros((5, 24)), np.eye(5, 24)[[0] * 5], np.eye(5, 24) * np.eye(5)[:, :1]):
        initialise_embeddings(model, vectors.astype(np.float32))
        assert torch.equal(model.embedding.weight, before)


def test_a_narrow_encoder_fills_the_columns_it_has() -> None:
    model, vectors = small_model(30), unit_rows(30, 3)
    before = model.embedding.weight.detach().clone()
    initialise_embeddings(model, vectors)
    assert torch.equal(model.embedding.weight[:, 3:], before[:, 3:])
    assert not torch.equal(model.embedding.weight[1:, :3], before[1:, :3])


def test_vectors_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 text vectors for a model of 5 items"):
        initialise_embeddings(small_model(5), unit_rows(4, 8))


def test_training_starts_at_the_titles_where_it_is_told_to(encoder: Path, tmp_path: Path) -> None:
    titles = tuple(f"{a} {b}" for a in WORDS for b in WORDS)
    items = np.tile(np.arange(len(titles), dtype=np.int32), 2)
    ids = tuple(map(str, range(len(titles))))
    data = Dataset(
        Sequences(items, np.array([0, len(titles), len(items)], dtype=np.int64)),
        ids,
        titles,
        ((),) * len(titles),
        ("a", "b"),
        {},
        "d" * 64,
    )

    def start(*settings: str) -> torch.Tensor:
        config = apply_settings(preset("tiny"), settings)
        trainer = Trainer(config, data, torch.device("cpu"), None, tmp_path / "state", lambda _: None)
        return trainer.model.embedding.weight.detach()

    told = start(f"train.item_text={encoder}")
    expected = ElasticModel(preset("tiny").model.for_items(len(titles)))
    with torch.no_grad():
        expected.embedding.weight.copy_(start())
    initialise_embeddings(expected, title_vectors(titles, encoder))
    assert torch.equal(told, expected.embedding.weight)
    assert not torch.equal(told, start())
