"""Event types: what an event weighs, from the table to the counting exit and the loss."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from fathom.cli import app
from fathom.errors import ConfigError, DataError, FathomError
from fathom.files import sha256_file
from fathom.training.batches import make_batch
from fathom.training.counting import CountingSettings, count
from fathom.training.data import PrepareOptions, prepare
from fathom.training.dataset import Dataset, Sequences
from fathom.training.model import ElasticModel, ModelConfig, prefix_paths
from fathom.training.objectives import CandidateSource, Objective
from fathom.training.splits import leave_one_out, temporal

SHOP = """\
visitor_id,item_id,time,event_type
u1,a,1000,view
u1,b,1010,view
u1,b,1020,purchase
u1,c,1030,cart
u2,c,1040, purchase
u2,a,1050,view
u2,d,1060,hover
u2,c,1070,view
"""
WEIGHTS = {"view": 0.25, "purchase": 1.0, "cart": 0.5, "hover": 0.0}
N_ITEMS = 9


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.csv"
    path.write_text(SHOP)
    return path


def weighted(items: list[list[int]], weights: list[list[float]] | None = None) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in items])]).astype(np.int64)
    flat = None if weights is None else np.concatenate([np.array(part, dtype=np.float32) for part in weights])
    return Sequences(np.concatenate([np.array(part, dtype=np.int32) for part in items]), offsets, None, flat)


def by_user(data: Dataset) -> dict[str, list[tuple[str, float]]]:
    sequences, weights = data.sequences, data.sequences.weights
    assert weights is not None
    return {
        user: [(data.item_ids[sequences.items[place]], float(weights[place])) for place in range(start, stop)]
        for user, start, stop in zip(data.user_ids, sequences.offsets, sequences.offsets[1:], strict=False)
    }


def test_each_event_has_the_weight_of_its_type_and_a_purchase_goes_before_a_view(shop: Path, tmp_path: Path) -> None:
    data = prepare(str(shop), tmp_path / "out", options=PrepareOptions(weight=WEIGHTS))
    assert by_user(data) == {"u1": [("a", 0.25), ("b", 1.0), ("c", 0.5)], "u2": [("c", 1.0), ("a", 0.25)]}
    assert data.sequences.times(0).tolist() == [1000, 1020, 1030]  # type: ignore[union-attr]
    assert data.meta["interactions"]["filtered"] == {"of type 'hover', which weighs 0": 1}
    assert data.meta["filters"]["removed"] == {"repeats": 2}
    assert data.meta["interactions"]["columns"]["type"] == "event_type"
    assert data.meta["types"] == {
        "cart": {"weight": 0.5, "events": 1},
        "hover": {"weight": 0.0, "events": 1},
        "purchase": {"weight": 1.0, "events": 2},
        "view": {"weight": 0.25, "events": 4},
    }
    assert by_user(Dataset.load(tmp_path / "out")) == by_user(data)


def test_kept_repeats_keep_their_own_weights(shop: Path, tmp_path: Path) -> None:
    data = prepare(str(shop), tmp_path / "out", options=PrepareOptions(weight=WEIGHTS, repeats="keep"))
    assert by_user(data)["u1"] == [("a", 0.25), ("b", 0.25), ("b", 1.0), ("c", 0.5)]


@pytest.mark.parametrize("given", [{}, {"type_column": "event_type"}, {"weight": dict.fromkeys(WEIGHTS, 2.0)}])
def test_where_all_events_weigh_the_same_the_interactions_are_as_without_types(
    shop: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    plain = pl.read_csv(shop).drop("event_type")
    plain.write_csv(tmp_path / "plain.csv")
    prepare(str(tmp_path / "plain.csv"), tmp_path / "plain")
    data = prepare(str(shop), tmp_path / "out", options=PrepareOptions(**given))  # type: ignore[arg-type]
    assert data.sequences.weights is None
    same = [sha256_file(tmp_path / folder / "interactions.parquet") for folder in ("plain", "out")]
    assert same[0] == same[1]
    assert ("types" in data.meta) == bool(given)


def test_whole_numbers_are_types_in_parquet_too_and_a_missing_type_is_malformed(tmp_path: Path) -> None:
    table = {"user": ["u", "u", "u", "u"], "item": ["a", "b", "c", "d"], "ts": [1, 2, 3, 4]}
    pl.DataFrame({**table, "behavior": [1.0, 4.0, None, 4.0]}).write_parquet(tmp_path / "a.parquet")
    options = PrepareOptions(weight={"1": 1, "4": 3}, max_malformed=0.5)
    data = prepare(str(tmp_path / "a.parquet"), tmp_path / "out", options=options)
    assert by_user(data) == {"u": [("a", 1.0), ("b", 3.0), ("d", 3.0)]}
    assert data.meta["interactions"]["malformed"] == {"rows": 1, "missing type": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weight", "purchase=1"], "no weight for the event types cart, hover, view; column 'event_type' has:"),
        (["--weight", "purchase=1"], "add --weight cart=1, or =0 to leave its events out"),
        (
            [part for name in (*WEIGHTS, "wish") for part in ("--weight", f"{name}=1")],
            "no event is of type 'wish'; column 'event_type' has: cart, hover, purchase, view; correct --weight",
        ),
        (["--weight", "view"], "--weight wants TYPE=WEIGHT, such as view=0.2, not 'view'"),
        (["--weight", "view=much"], "--weight wants TYPE=WEIGHT"),
        (["--weight", "view=1", "--weight", "view=2"], "--weight names 'view' twice"),
        (["--weight", "view=-1"], "weight of 'view' must be 0 (left out) or 1e-06 to 1,000,000, not -1"),
        (["--weight", "view=nan"], "weight of 'view' must be 0"),
        (["--weight", "view=0"], "weight leaves out every event type"),
        (["--weight", "view=1", "--type-column", "kind"], "no column 'kind'"),
        (["--weight", "view=1", "--type-column", "item_id"], "'item_id' cannot be both item and type"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    shop: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(FathomError) as caught:
        command = ["data", "prepare", str(shop), "--out", str(tmp_path / "out"), *arguments]
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_need_a_column_of_types_and_a_source_that_may_have_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,item,time\nu,a,1\n")
    with pytest.raises(DataError, match=r"no column for the type .*; name it with --type-column"):
        prepare(str(path), tmp_path / "out", options=PrepareOptions(weight={"view": 1}))
    with pytest.raises(ConfigError, match="weight does nothing for ml-100k"):
        prepare("ml-100k", tmp_path / "out", options=PrepareOptions(weight={"view": 1}))


def test_a_column_of_texts_is_no_column_of_types(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,item,action\n" + "".join(f"u,i{n},text {n}\n" for n in range(1_200)))
    with pytest.raises(DataError, match="'action' has more than 1,000 different values"):
        prepare(str(path), tmp_path / "out", options=PrepareOptions(type_column="action"))


def test_the_command_says_what_each_type_weighs(shop: Path, tmp_path: Path) -> None:
    command = ["data", "prepare", str(shop), "--out", str(tmp_path / "out")]
    command += [part for name, weight in WEIGHTS.items() for part in ("--weight", f"{name}={weight}")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert "event types 'cart' weighs 0.5 (events: 1), 'hover' weighs 0 (events: 1)" in printed
    assert "1 of type 'hover', which weighs 0" in printed
    assert json.loads((tmp_path / "out/meta.json").read_bytes())["types"]["view"] == {"weight": 0.25, "events": 4}


@pytest.mark.parametrize("damaged", [0.0, -1.0, float("nan"), float("inf")])
def test_a_dataset_with_an_impossible_weight_is_refused(shop: Path, tmp_path: Path, damaged: float) -> None:
    prepare(str(shop), tmp_path / "out", options=PrepareOptions(weight=WEIGHTS))
    path = tmp_path / "out/interactions.parquet"
    table = pl.read_parquet(path)
    table.with_columns(pl.lit(damaged, dtype=pl.Float32).alias("weight")).write_parquet(path)
    meta = json.loads((tmp_path / "out/meta.json").read_bytes())
    meta["sha256"]["interactions.parquet"] = sha256_file(path)
    (tmp_path / "out/meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match="a weight is not a number above 0"):
        Dataset.load(tmp_path / "out")


def test_both_splits_keep_each_events_weight(shop: Path, tmp_path: Path) -> None:
    data = prepare(str(shop), tmp_path / "out", options=PrepareOptions(weight=WEIGHTS))
    cut = leave_one_out(data)
    assert cut.train.weights is not None
    assert cut.until_test.weights is not None
    assert cut.train.weights.tolist() == [0.25, 1.0, 0.25]
    assert cut.until_test.weights.tolist() == [0.25, 1.0, 1.0, 0.25]
    assert cut.test.histories.weights is not None
    assert cut.test.histories.weights.tolist() == [0.25, 1.0]
    rng = np.random.default_rng(0)
    items, times = rng.integers(0, 9, 60).astype(np.int32), np.sort(rng.integers(0, 10**6, 60))
    of_each = (1 + items).astype(np.float32)
    many = Sequences(items, np.arange(0, 61, 6), rng.permuted(times.reshape(6, 10).T, axis=0).ravel(), of_each)
    names = tuple(map(str, range(10)))
    later = temporal(Dataset(many, names[:9], names[:9], ((),) * 9, names, {}, "d" * 64), 0.7)
    assert later.until_test.weights is not None
    assert later.until_test.weights.tolist() == (1 + later.until_test.items).tolist()


def test_counting_adds_the_weight_of_the_event_that_follows() -> None:
    train = weighted([[0, 1, 2], [0, 1]], [[1, 0.5, 0.25], [0.25, 1]])
    chosen = CountingSettings(max_lag=2, backward=0.5, target_power=0.5, source_power=0.25)
    tables = count(train, 4, chosen)
    events = np.array([1.25, 1.5, 0.25, 1])
    gains = np.zeros((4, 4))
    gains[0, 1], gains[0, 2], gains[1, 2] = 0.5 + 1, 0.25 / 2, 0.25
    expected = (gains + 0.5 * gains.T) * events[:, None] ** -0.25 * events**-0.5
    found = np.zeros((4, 4))
    found[np.repeat(np.arange(4), np.diff(tables.offsets)), tables.neighbours] = tables.weights
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(tables.popularity, np.array([1.25, 1.5, 0.25, 0]) / 3, rtol=1e-6)


def test_counting_equal_weights_is_counting_events() -> None:
    items = [[0, 1, 2, 0], [2, 1], [3]]
    plain = count(weighted(items), 5, CountingSettings())
    ones = count(weighted(items, [[1.0] * len(part) for part in items]), 5, CountingSettings())
    for name in ("offsets", "neighbours", "weights", "popularity"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(ones, name))


def test_a_batch_holds_the_weight_of_every_next_item() -> None:
    train = weighted([[0, 1, 2, 3], [4, 5]], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6]])
    batch = make_batch(train, np.array([[0, 1, 3], [1, 0, 1]]), 2)
    assert batch.ahead.tolist() == [[[2, 3], [3, -1]], [[-1, 5], [5, -1]]]
    assert batch.weights is not None
    expected = torch.tensor([[[0.3, 0.4], [0.4, 0]], [[0, 0.6], [0.6, 0]]])
    assert torch.equal(batch.weights, expected)
    assert make_batch(weighted([[0, 1, 2, 3], [4, 5]]), np.array([[0, 1, 3]]), 2).weights is None


def gradients(model: ElasticModel, train: Sequences, *, without: int | None = None) -> list[torch.Tensor]:
    """The gradients of a real training loss; ``without``: an item that is taken out of the targets."""
    model.zero_grad()
    batch = make_batch(train, np.array([[0, 0, 4], [1, 0, 2]]), 2)
    ahead = batch.ahead if without is None else torch.where(batch.ahead == without, -1, batch.ahead)
    candidates = CandidateSource(train, N_ITEMS, samples=None).draw(batch.users, np.random.default_rng(0))
    objective = Objective(model.item_vectors() / 0.1, candidates, ahead, batch.weights)
    users = model(batch.items, None, model.depths)
    deep, shallow = (objective.read(users[depth]) for depth in (model.depths[-1], model.depths[0]))
    (objective.cross_entropy(deep) + objective.distillation(shallow, deep)).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_target_that_weighs_next_to_nothing_trains_as_if_it_were_no_target() -> None:
    torch.manual_seed(0)
    config = ModelConfig(items=N_ITEMS, width=8, heads=2, layers=2, paths=prefix_paths([1, 2]), dropout=0.0)
    model = ElasticModel(config).eval()
    items = [[0, 1, 2, 3, 4], [5, 6, 7]]
    light = gradients(model, weighted(items, [[1, 1, 1e-6, 1, 1], [1, 1, 1]]))
    dropped = gradients(model, weighted(items), without=2)
    torch.testing.assert_close(light, dropped, rtol=1e-4, atol=1e-5)
    plain = gradients(model, weighted(items))
    torch.testing.assert_close(gradients(model, weighted(items, [[3.0] * 5, [3.0] * 3])), plain)
    assert any(not torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(light, plain, strict=True))
