"""LayerRanking: how important each layer is by every method, how sure that is, and what the methods agree on."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any, Self

from fathom.artefacts import RANKING, expect
from fathom.errors import ArtefactError
from fathom.files import read_json, write_json
from fathom.importance.statistics import TIERS, tier_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MethodScores:
    """One method's scores per layer, entry i for layer i; higher is more important.

    low, high: 95 % bootstrap interval over users; ranks: 1 = most important; seconds: what measuring took; stability:
    mean Kendall's tau between these scores and those of a bootstrap resample, None in files that do not say.
    """

    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ranks: tuple[int, ...]
    seconds: float
    stability: float | None = None


@dataclass(frozen=True)
class Grade:
    """How close a method comes to the truth.

    tau: Kendall's tau between the method's scores and the exact Shapley values, with its 95 % bootstrap interval over
    users; regret: size -> utility of the best subset of so many layers less that of the method's top layers, 0 or more.
    """

    tau: float
    low: float
    high: float
    regret: dict[int, float]


@dataclass(frozen=True)
class LayerRanking:
    """The layers of one checkpoint ordered by importance.

    checkpoint, dataset: sha256, or None when unknown; users: how many were measured; kendall_tau: method -> method ->
    -1..1; consensus_scores: Borda score per layer, 1 when all methods put it first and 0 when all put it last;
    consensus_order: layers, most important first, ties by the lower index; grades: metric -> method or "consensus" ->
    Grade against a lattice of the same users, empty where none was measured; graded_subsets: how many subsets of layers
    that lattice holds; left_out: method -> why it could not judge this model, in one line.

    kemeny_order: the order that disagrees least with the methods' ranks, None for more than 20 layers; tiers: tier ->
    probability of each layer. Tiers go by the place in the consensus: "critical" is the first quarter of the places (of
    16 layers, what depth 4 keeps), "redundant" the last quarter (what only depth 16 runs), "middle" what lies between.
    The probability is the share of 2,000 bootstrap resamples in which the consensus puts the layer there: methods with
    a row for each user are drawn with the same users, methods with folds draw folds. consensus_stability: as that of a
    method. Older files have none of these: None, or empty. layer_names: path of each layer in a model that is not ours.

    Raises ArtefactError when the parts contradict each other or a number is not finite.
    """

    layers: int
    checkpoint: str | None
    dataset: str | None
    users: int
    seed: int
    methods: dict[str, MethodScores]
    kendall_tau: dict[str, dict[str, float]]
    consensus_scores: tuple[float, ...]
    consensus_order: tuple[int, ...]
    grades: dict[str, dict[str, Grade]] = field(default_factory=dict)
    kemeny_order: tuple[int, ...] | None = None
    tiers: dict[str, tuple[float, ...]] = field(default_factory=dict)
    consensus_stability: float | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    graded_subsets: int | None = None
    layer_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem = next(_problems(self), None)
        if problem:
            raise ArtefactError(f"not a usable layer ranking: {problem}; rank the layers again")

    def tier(self, layer: int) -> str:
        """The tier that a layer's place in the consensus gives it."""
        return tier_of(self.consensus_order.index(layer) + 1, self.layers)

    @property
    def graded_against(self) -> str:
        """What the grades were measured against, in words."""
        if self.graded_subsets is not None:
            return subsets_in_words(self.graded_subsets, self.layers)
        is_whole = any(grade.regret for row in self.grades.values() for grade in row.values())
        return "every subset of layers" if is_whole else "a sample of the subsets of layers"

    def save(self, path: Path) -> None:
        """Write ``ranking.json``, whole or not at all."""
        methods = {name: asdict(method) for name, method in self.methods.items()}
        consensus = {
            "scores": self.consensus_scores,
            "order": self.consensus_order,
            "kemeny_order": self.kemeny_order,
            "tiers": self.tiers,
            "stability": self.consensus_stability,
        }
        names = ("layers", "checkpoint", "dataset", "users", "seed", "graded_subsets", "layer_names")
        head = {name: getattr(self, name) for name in names}
        grades = {metric: {name: asdict(grade) for name, grade in row.items()} for metric, row in self.grades.items()}
        body = {"methods": methods, "kendall_tau": self.kendall_tau, "consensus": consensus, "grades": grades}
        write_json(path, {"schema_version": SCHEMA_VERSION, **head, **body, "left_out": self.left_out})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``ranking.json``; raises ArtefactError, in one line, when it is not a whole and consistent one."""
        expect(path, RANKING)
        value = read_json(path, kind="layer ranking", schema_version=SCHEMA_VERSION)
        try:
            return cls._from_json(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{path}: not a layer ranking: {type(error).__name__}: {error}") from None
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from None

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> Self:
        consensus = value["consensus"]
        kemeny = consensus.get("kemeny_order")
        return cls(
            layers=int(value["layers"]),
            checkpoint=value["checkpoint"],
            dataset=value["dataset"],
            users=int(value["users"]),
            seed=int(value["seed"]),
            methods={name: _method(scores) for name, scores in value["methods"].items()},
            kendall_tau={a: {b: float(tau) for b, tau in row.items()} for a, row in value["kendall_tau"].items()},
            consensus_scores=tuple(map(float, consensus["scores"])),
            consensus_order=tuple(map(int, consensus["order"])),
            grades={
                metric: {name: _grade(g) for name, g in row.items()} for metric, row in value.get("grades", {}).items()
            },
            kemeny_order=None if kemeny is None else tuple(map(int, kemeny)),
            tiers={tier: tuple(map(float, shares)) for tier, shares in consensus.get("tiers", {}).items()},
            consensus_stability=_known(consensus.get("stability")),
            left_out={name: str(reason) for name, reason in value.get("left_out", {}).items()},
            graded_subsets=None if value.get("graded_subsets") is None else int(value["graded_subsets"]),
            layer_names=tuple(map(str, value.get("layer_names", ()))),
        )


def subsets_in_words(count: int, layers: int) -> str:
    """``every subset of layers``, or how many of them were sampled."""
    every = 1 << layers
    return "every subset of layers" if count == every else f"{count:,} of {every:,} subsets of layers, sampled"


def _method(value: dict[str, Any]) -> MethodScores:
    scores, low, high = (tuple(map(float, value[key])) for key in ("scores", "low", "high"))
    ranks = tuple(map(int, value["ranks"]))
    return MethodScores(scores, low, high, ranks, float(value["seconds"]), _known(value.get("stability")))


def _known(value: Any) -> float | None:
    return None if value is None else float(value)


def _grade(value: dict[str, Any]) -> Grade:
    regret = {int(size): float(lost) for size, lost in value["regret"].items()}
    return Grade(float(value["tau"]), float(value["low"]), float(value["high"]), regret)


def _problems(ranking: LayerRanking) -> Iterator[str]:
    layers = ranking.layers
    if not ranking.methods:
        yield "it holds no method"
    if ranking.layer_names and len(ranking.layer_names) != layers:
        yield f"it does not name each of the {layers} layers"
    for name, method in ranking.methods.items():
        if {len(method.scores), len(method.low), len(method.high), len(method.ranks)} != {layers}:
            yield f"method {name} does not have {layers} scores, intervals and ranks"
        if not all(
            map(isfinite, chain(method.scores, method.low, method.high, [method.seconds, method.stability or 0]))
        ):
            yield f"method {name} has a value that is NaN or infinite"
        if sorted(method.ranks) != list(range(1, layers + 1)):
            yield f"the ranks of method {name} are not 1..{layers}"
        if set(ranking.kendall_tau.get(name, {})) != set(ranking.methods):
            yield f"Kendall's tau of method {name} with each method is missing"
    if not all(isfinite(tau) for row in ranking.kendall_tau.values() for tau in row.values()):
        yield "Kendall's tau has a value that is NaN or infinite"
    if len(ranking.consensus_scores) != layers or not all(map(isfinite, ranking.consensus_scores)):
        yield f"the consensus does not have {layers} finite scores"
    if sorted(ranking.consensus_order) != list(range(layers)):
        yield f"the consensus order is not each of the layers 0..{layers - 1} once"
    if ranking.kemeny_order is not None and sorted(ranking.kemeny_order) != list(range(layers)):
        yield f"the Kemeny order is not each of the layers 0..{layers - 1} once"
    if ranking.tiers and (
        set(ranking.tiers) != set(TIERS) or any(len(row) != layers for row in ranking.tiers.values())
    ):
        yield f"the tiers are not {', '.join(TIERS)} with {layers} probabilities each"
    if not all(isfinite(share) for share in chain(*ranking.tiers.values(), [ranking.consensus_stability or 0])):
        yield "a tier or the stability has a value that is NaN or infinite"
