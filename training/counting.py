"""The counting exit, depth 0: what usually follows an item, counted in training data and tuned on validation items."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fathom.training.baselines import EASE_MAX_ITEMS, Scores, ease_weights, recency
from fathom.training.dataset import Progress, Sequences
from fathom.training.metrics import Floats, ndcg, ranks
from fathom.training.splits import Cases, Split

if TYPE_CHECKING:
    from fathom.training.model import ElasticModel

Table = Any  # a scipy csr_array (n, n)

CUTOFF = 10
TUNING_CASES = 4_000
DAY_S = 86_400
#: decay -> the window that it is tried with.
WINDOWS = {0.5: 20, 0.6: 20, 0.7: 20, 0.8: 20, 0.9: 100, 0.95: 100, 0.98: 100}
#: What is tried for each setting, one setting after the other; the others stay at the best found so far.
GRIDS: dict[str, tuple[Any, ...]] = {
    "target_power": (0.0, 0.25, 0.5),
    "source_power": (0.25, 0.5),
    "decay": tuple(WINDOWS),
    "backward": (0.0, 0.25, 1.0),
    "max_lag": (5, 20, 50),
}
#: What is tried then, from the best transitions and from EASE alone.
EASE_GRIDS: dict[str, tuple[Any, ...]] = {
    "ease": (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0),
    "decay": tuple(WINDOWS),
}
EASE_REGULARISATION = 300.0
NEIGHBOURS = (16, 32, 64, 128)
HALF_LIVES = (None, 30.0, 90.0, 365.0)
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 1.0)


@dataclass(frozen=True)
class CountingSettings:
    """How transitions and popularity are counted.

    T[a, b] gains 1/lag wherever item b follows item a at a lag of 1 to ``max_lag``, and ``backward``/lag wherever it
    precedes a; an item is no neighbour of itself. b's weight beside a is T[a, b] * events(a)^-``source_power`` *
    events(b)^-``target_power``. ``ease``, 0 to 1, is the share of EASE's weights above 0 in the sum of both, after they
    are scaled to the same mean of the rows' largest weights. An item keeps its ``neighbours`` largest (equal weights:
    the lowest index).
    Of a history the newest ``window`` items count, each ``decay`` times what the next newer one does. An event adds
    half as much to popularity for every ``half_life_days`` that it is older than the newest; None: all add the same.
    Where events have weights, a pair gains the weight of its later event times as much, and an event counts its weight
    in events() and popularity; to EASE all events are alike.
    """

    max_lag: int = 20
    backward: float = 0.25
    target_power: float = 0.25
    source_power: float = 0.25
    decay: float = 0.7
    window: int = 20
    neighbours: int = 64
    half_life_days: float | None = None
    ease: float = 0.0


@dataclass(frozen=True, eq=False)
class CountingTables:
    """Transitions between n items, and popularity below them.

    offsets: int64 (n + 1,), the neighbours of item i are those from offsets[i] to offsets[i + 1], ascending;
    neighbours: int32 (m,), item indices; weights: float32 (m,), above 0; popularity: float32 (n,), each item's share
    of the (recent) events.
    """

    settings: CountingSettings
    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    weights: NDArray[np.float32]
    popularity: NDArray[np.float32]

    def shares(self, histories: Sequences) -> "sparse.csr_array[Any, Any]":
        """What follows each history, in relation to what follows it most: sparse float32 (n, items), 0 to 1.

        The count of an item is the sum over the history's newest items of decay^age * weight; seen items are counted
        too. A history with no counted item, as an empty one, has an empty row.
        """
        n_items = len(self.popularity)
        table = sparse.csr_array((self.weights, self.neighbours, self.offsets), shape=(n_items, n_items))
        newest = recency(histories, n_items, self.settings.decay, last=self.settings.window, dtype=np.float64)
        counts = sparse.csr_array(newest @ table)
        counts.sort_indices()
        largest = counts.max(axis=1).toarray().ravel()
        counts.data /= np.repeat(largest, np.diff(counts.indptr))
        return counts.astype(np.float32)

    def scores(self, histories: Sequences) -> Scores:
        """Depth 0's scores, float32 (n, items): the share, and where nothing is counted popularity less 1."""
        shares = self.shares(histories).toarray()
        return np.where(shares > 0, shares, self.popularity - np.float32(1))


@dataclass(frozen=True)
class CountingExit:
    """Depth 0, and what an item's share weighs beside its cosine at each deeper exit: depth -> weight, 0 for none."""

    tables: CountingTables
    weights: dict[int, float]


def count(train: Sequences, n_items: int, settings: CountingSettings) -> CountingTables:
    """Count transitions and popularity in sequences of items.

    Raises DataError where EASE has a share and there are too many items for it: see ``baselines.ease``.
    """
    forward = _forward(train, n_items, range(1, settings.max_lag + 1))
    table = _weighted(forward, _events(train, n_items), settings)
    if settings.ease:
        table = _mixed_tables(table, _ease(train, n_items), settings.ease)
    return _tables(_largest(table, settings.neighbours), _popularity(train, n_items, settings.half_life_days), settings)


def tune(
    train: Sequences, cases: Cases, n_items: int, progress: Progress = lambda _: None, *, longest: int = WINDOWS[0.98]
) -> CountingSettings:
    """The settings that are best in NDCG@10 of depth 0 on some cases, seen items left out.

    One setting after the other takes the best of its grid. EASE gets a share where that is measurably better, in a
    catalogue that it can be computed for. Last, items keep as few neighbours as is not measurably worse than the best
    number. Without cases the settings are the defaults. ``longest``: items of a history that there will be, which no
    window exceeds.
    """
    start = _with(CountingSettings(), "decay", CountingSettings.decay, longest)
    if not len(cases):
        return start
    tuner = _Tuner(train, cases, n_items, longest, progress)
    settings, values = tuner.search(replace(start, half_life_days=tuner.half_life), GRIDS)
    if n_items <= EASE_MAX_ITEMS:
        regression = _with(replace(settings, ease=1.0), "decay", 0.95, longest)
        found = [tuner.search(start, EASE_GRIDS) for start in (settings, regression)]
        mixed, better = max(found, key=lambda each: float(each[1].mean()))
        if first_not_worse(np.stack([values, better])):
            settings = mixed
    progress("tuning counting: how many neighbours an item keeps")
    table = tuner.table(settings)
    kept = first_not_worse(np.stack([tuner.quality(_largest(table, size), settings) for size in NEIGHBOURS]))
    return replace(settings, neighbours=NEIGHBOURS[kept])


class _Tuner:
    """Measures settings on validation cases; what several of them share is counted once."""

    def __init__(self, train: Sequences, cases: Cases, n_items: int, longest: int, progress: Progress) -> None:
        self._longest = longest
        self.half_life = _best_half_life(train, cases, n_items)
        self._train, self._cases, self._n_items, self._progress = train, cases, n_items, progress
        self._popularity = _popularity(train, n_items, self.half_life)
        self._events, self._forward = _events(train, n_items), _forwards(train, n_items, progress)

    def search(self, start: CountingSettings, grids: dict[str, tuple[Any, ...]]) -> tuple[CountingSettings, Floats]:
        """The best of each grid in turn, and its NDCG@10 of every case, float64 (cases,)."""
        settings, best = start, self.quality(self.table(start), start)
        for name, values in grids.items():
            others = (value for value in values if value != getattr(settings, name))
            for tried in [_with(settings, name, value, self._longest) for value in others]:
                self._progress(f"tuning counting: {name} {getattr(tried, name)}")
                found = self.quality(self.table(tried), tried)
                if found.mean() > best.mean():
                    best, settings = found, tried
        return settings, best

    def table(self, settings: CountingSettings) -> Table:
        """The most neighbours that are tried, csr float32 (n, n)."""
        table = _weighted(self._forward[settings.max_lag], self._events, settings)
        if settings.ease:
            table = _mixed_tables(table, self._ease, settings.ease)
        return _largest(table, NEIGHBOURS[-1])

    def quality(self, table: Table, settings: CountingSettings) -> Floats:
        """NDCG@10 of every case, float64 (cases,)."""
        return _case_ndcg(self._cases, self._n_items, _tables(table, self._popularity, settings).scores)

    @cached_property
    def _ease(self) -> Table:
        self._progress("tuning counting: EASE")
        return _ease(self._train, self._n_items)


def _with(settings: CountingSettings, name: str, value: Any, longest: int) -> CountingSettings:
    """One setting changed; a decay brings its window, as far as histories reach."""
    window = {"window": min(WINDOWS[value], longest)} if name == "decay" else {}
    return replace(settings, **{name: value}, **window)


def fit_counting(
    model: "ElasticModel", cut: Split, n_items: int, *, device: str = "cpu", progress: Progress = lambda _: None
) -> CountingExit:
    """Tune the counting exit and its weight beside each exit of a model on validation items, then count up to the test.

    While tuning, tables are counted on the training part. All depths get the same weight, the best in the mean over
    depths of NDCG@10: what was chosen for each alone would be noise between them. At most 4,000 evenly spread cases are
    used; a split without validation cases gets the default settings and weights of 0.
    """
    cases = tuning_cases(cut)
    settings = tune(cut.train, cases, n_items, progress, longest=model.config.max_history)
    weight = _choose_weight(model, count(cut.train, n_items, settings), cases, device, progress)
    progress("counting everything before the test items")
    return CountingExit(count(cut.until_test, n_items, settings), dict.fromkeys(model.depths, weight))


def tuning_cases(cut: Split) -> Cases:
    """The validation cases, at most 4,000, evenly spread."""
    cases = cut.validation
    if len(cases) <= TUNING_CASES:
        return cases
    return cases.select(np.linspace(0, len(cases) - 1, TUNING_CASES).round().astype(np.int64))


def with_counting(
    network: Callable[[Sequences], dict[str, Scores]], exit: CountingExit, *, alone: bool = False
) -> Callable[[Sequences], dict[str, Scores]]:
    """Scores (histories, items) as they are served: "depth 0", and every deeper exit with its part of counting.

    ``network``: the cosines of every deeper exit, by name. ``alone`` adds "depth N alone", the network's own scores,
    for every exit that counting has a part in.
    """

    def score(histories: Sequences) -> dict[str, Scores]:
        found, cosines = {"depth 0": exit.tables.scores(histories)}, network(histories)
        shares = exit.tables.shares(histories).toarray()
        for depth, weight in exit.weights.items():
            found[f"depth {depth}"] = _mixed(cosines[f"depth {depth}"], shares, weight)
        for depth in [depth for depth, weight in exit.weights.items() if alone and weight]:
            found[f"depth {depth} alone"] = cosines[f"depth {depth}"]
        return found

    return score


def first_not_worse(values: Floats) -> int:
    """The first candidate that is at most one standard error of their paired difference below the best in the mean.

    values: float64 (candidates, cases), simplest first. With a single case nothing is measurable: the first.
    """
    best = values[values.mean(axis=1).argmax()]
    if len(best) < 2:
        return 0
    lost = best - values
    errors = lost.std(axis=1, ddof=1) / np.sqrt(len(best))
    return int(np.flatnonzero(lost.mean(axis=1) <= errors)[0])


def _choose_weight(
    model: "ElasticModel", tables: CountingTables, cases: Cases, device: str, progress: Progress
) -> float:
    """The weight of counting at every depth, chosen on some cases in one pass over the network."""
    from fathom.training.scorer import depth_name, exit_scorer  # torch takes seconds to import

    network, done = exit_scorer(model, device), 0
    gained = np.zeros(len(WEIGHTS))
    for rows in cases.chunks(len(tables.popularity)):
        chunk = cases.select(rows)
        cosines, shares = network(chunk.histories), tables.shares(chunk.histories).toarray()
        for depth in model.depths:
            for place, weight in enumerate(WEIGHTS):
                gained[place] += _ndcg(_mixed(cosines[depth_name(depth)], shares, weight), chunk).sum()
        done += len(rows)
        progress(f"weighing counting beside the network: {done:,} of {len(cases):,} users")
    return WEIGHTS[int(gained.argmax())]  # the smallest of equal ones


def _mixed(cosines: Scores, shares: Scores, weight: float) -> Scores:
    return cosines + np.float32(weight) * shares


def _case_ndcg(cases: Cases, n_items: int, scores: Callable[[Sequences], Scores]) -> Floats:
    """NDCG@10 of every case, float64 (cases,)."""
    found = np.empty(len(cases))
    for rows in cases.chunks(n_items):
        chunk = cases.select(rows)
        found[rows] = _ndcg(scores(chunk.histories), chunk)
    return found


def _ndcg(scores: Scores, cases: Cases) -> Floats:
    """NDCG@10 of scores (cases, items), which are changed: seen items are left out."""
    scores[cases.histories.owners, cases.histories.items] = -np.inf
    return ndcg(ranks(scores, cases.targets), CUTOFF)


def _events(train: Sequences, n_items: int) -> Floats:
    """Events of each item, or what they weigh together; 1 where there is none: float64 (n,)."""
    found = np.bincount(train.items, train.weights, minlength=n_items)
    return np.where(found > 0, found, 1).astype(np.float64)


def _popularity(train: Sequences, n_items: int, half_life_days: float | None) -> NDArray[np.float32]:
    """Each item's share of the events, recent ones counting more: float32 (n,)."""
    weights = np.ones(len(train.items))
    if half_life_days is not None and train.timestamps is not None and len(train.items):
        times = train.timestamps.astype(np.float64)
        weights = 0.5 ** ((times.max() - times) / (half_life_days * DAY_S))
    if train.weights is not None:
        weights = weights * train.weights
    found: Floats = np.bincount(train.items, weights, minlength=n_items) / (weights.sum() or 1.0)
    return found.astype(np.float32)


def _best_half_life(train: Sequences, cases: Cases, n_items: int) -> float | None:
    """The half life, in days, with which popularity alone is best; None where no half life is better than none."""
    if train.timestamps is None:
        return None

    def quality(half_life: float | None) -> float:
        popularity = _popularity(train, n_items, half_life)
        return float(_case_ndcg(cases, n_items, lambda chunk: np.tile(popularity, (len(chunk), 1))).mean())

    return max(HALF_LIVES, key=quality)


def _forwards(train: Sequences, n_items: int, progress: Progress) -> dict[int, Table]:
    """Transitions for every longest lag of the grid, each table the beginning of the next."""
    tables: dict[int, Table] = {}
    table = sparse.csr_array((n_items, n_items), dtype=np.float64)
    for before, longest in pairwise((0, *GRIDS["max_lag"])):
        progress(f"counting transitions: lag {before + 1} to {longest}")
        table = tables[longest] = table + _forward(train, n_items, range(before + 1, longest + 1))
    return tables


def _forward(train: Sequences, n_items: int, lags: range) -> Table:
    """The sum of (b's weight) / lag over all events where b follows a at one of the lags: csr float64 (n, n)."""
    table, owners = sparse.csr_array((n_items, n_items), dtype=np.float64), train.owners
    for lag in lags:
        earlier, later = train.items[:-lag], train.items[lag:]
        pairs = (owners[lag:] == owners[:-lag]) & (earlier != later)
        places = (earlier[pairs], later[pairs])
        gains = np.full(len(places[0]), 1.0 / lag)
        if train.weights is not None:
            gains *= train.weights[lag:][pairs]
        table = table + sparse.csr_array((gains, places), shape=table.shape)
    return table


def _weighted(forward: Table, events: Floats, settings: CountingSettings) -> Table:
    """All neighbours' weights, csr float32 (n, n), ascending in each row."""
    both = forward + settings.backward * forward.T if settings.backward else forward
    table = sparse.csr_array(both, copy=True)
    table.sort_indices()
    source, target = events**-settings.source_power, events**-settings.target_power
    table.data *= np.repeat(source, np.diff(table.indptr)) * target[table.indices]
    return table.astype(np.float32)


def _ease(train: Sequences, n_items: int) -> Table:
    """EASE's weights above 0, the largest of each row, csr float32 (n, n)."""
    weights = ease_weights(train, n_items, EASE_REGULARISATION)
    kept = min(NEIGHBOURS[-1], n_items)
    for row in weights:
        smallest = max(np.partition(row, n_items - kept)[n_items - kept], 0)
        row[row < smallest] = 0
        row[row < 0] = 0
    return sparse.csr_array(weights)


def _mixed_tables(counted: Table, ease: Table, share: float) -> Table:
    """(1 - share) of what is counted and a share of EASE on the same scale; csr float32 (n, n), ascending in a row."""
    largest, other = counted.max(axis=1).toarray().sum(), ease.max(axis=1).toarray().sum()
    scale = largest / other if largest and other else 1.0
    table = sparse.csr_array((1 - share) * counted + (share * scale) * ease)
    table.eliminate_zeros()
    table.sort_indices()
    return table.astype(np.float32)


def _largest(table: Table, neighbours: int) -> Table:
    """Only the largest weights of each row; equal ones: the lowest index."""
    kept = np.ones(table.nnz, dtype=np.bool_)
    for row in np.flatnonzero(np.diff(table.indptr) > neighbours):
        start, end = table.indptr[row : row + 2]
        values = table.data[start:end]
        smallest = np.partition(values, -neighbours)[-neighbours]
        above = values > smallest
        kept[start:end] = above
        equal = np.flatnonzero(values == smallest)
        kept[start + equal[: neighbours - np.count_nonzero(above)]] = True
    offsets = np.concatenate([[0], np.cumsum(kept)])[table.indptr]
    return sparse.csr_array((table.data[kept], table.indices[kept], offsets), shape=table.shape)


def _tables(table: Table, popularity: NDArray[np.float32], settings: CountingSettings) -> CountingTables:
    return CountingTables(
        settings=settings,
        offsets=table.indptr.astype(np.int64),
        neighbours=table.indices.astype(np.int32),
        weights=table.data,
        popularity=popularity,
    )
