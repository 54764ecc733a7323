"""What engines in fewer bits recommend, against the same engines in fp32: full ranking of the test items."""

from collections.abc import Callable, Mapping

import numpy as np

from fathom.errors import ParityError
from fathom.exporter.engines.engine_set import EngineSet
from fathom.runtime.manifest import MetricInterval
from fathom.training.baselines import Scores
from fathom.training.batches import history_batches
from fathom.training.context import Context
from fathom.training.counting import CountingExit, with_counting
from fathom.training.dataset import Dataset, Sequences
from fathom.training.evaluate import EvaluationReport, evaluate
from fathom.training.metrics import Floats, bootstrap_means, percentile
from fathom.training.request_time import RequestTime, gaps_of
from fathom.training.scorer import depth_name
from fathom.training.splits import Split

METRIC = "ndcg@10"
#: Of NDCG@10, where nothing else is said: as much as published compressions call lossless.
MAX_LOSS = 0.01
_TOKENS = 6_400


def evaluate_engines(
    engines: EngineSet,
    dataset: Dataset,
    cut: Split,
    counting: CountingExit,
    request_time: RequestTime | None = None,
    context: Context | None = None,
    *,
    max_history: int,
    progress: Callable[[str], None],
) -> EvaluationReport:
    """As ``evaluate_model`` does it, every depth by its engines and with their item vectors."""
    vectors = np.asarray(engines.vectors)

    def score(histories: Sequences) -> dict[str, Scores]:
        found = {spec.depth: np.empty((len(histories), len(vectors)), dtype=np.float32) for spec in engines.specs}
        gaps = gaps_of(histories)
        for rows, ids, times in history_batches(histories, max_history=max_history, tokens=_TOKENS):
            for depth, users in engines.run(ids.numpy(), None if times is None else times.numpy()).items():
                if request_time is not None:
                    users = request_time.moved(users, gaps[rows])
                if context is not None and histories.asked_contexts is not None:
                    users = context.moved(users, histories.asked_contexts.select(rows))
                found[depth][rows] = users @ vectors.T
        return {depth_name(depth): scores for depth, scores in found.items()}

    deepest = depth_name(engines.specs[-1].depth)
    scorer = with_counting(score, counting)
    return evaluate(cut.test, [scorer], n_items=dataset.n_items, reference=deepest, progress=progress)


def losses(full: EvaluationReport, reduced: EvaluationReport, depths: tuple[int, ...]) -> dict[int, MetricInterval]:
    """Depth -> the share of NDCG@10 that is lost, 1 - reduced / full, with its 95 % interval, paired over users."""
    found = {}
    for depth in depths:
        name = depth_name(depth)
        found[depth] = relative_loss(full.per_user[name][METRIC], reduced.per_user[name][METRIC])
    return found


def relative_loss(full: Floats, reduced: Floats) -> MetricInterval:
    """1 - mean(reduced) / mean(full) over the same users (n,), with its 95 % percentile bootstrap interval."""
    means = bootstrap_means(np.stack((full, reduced), axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.nan_to_num(1 - means[:, 1] / means[:, 0])
        value = np.nan_to_num(1 - reduced.mean() / full.mean())
    return MetricInterval(**percentile(float(value), drawn).as_dict())


def check_losses(losses: Mapping[int, MetricInterval], max_loss: float, precision: str) -> None:
    """Raise ParityError where a depth loses more than is allowed."""
    for depth, loss in sorted(losses.items()):
        if loss.value > max_loss:
            raise ParityError(
                f"depth {depth} loses {loss.value:.1%} of its NDCG@10 [{loss.low:.1%}, {loss.high:.1%}] in {precision},"
                f" more than {max_loss:.1%}; choose more bits, or allow it with --max-loss"
            )
