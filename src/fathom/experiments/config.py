"""``experiments.yaml``: which experiments run, their arms and shares of the traffic, and how they are judged.

``load_experiments`` reads the file; every mistake is reported as ``file:line: what, what to do``.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from fathom.edge_profiles.document import Document, Location, read_document, short
from fathom.errors import ConfigError

#: experiments, NAME, arms, ARM, key: the lines of all of these are known.
_LEVELS = 5
#: Sums of shares as people write them, as 0.1 + 0.2 + 0.7.
_ROUNDING = 1e-9

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(gt=0, le=0.5)]
Unit = Literal["user", "session", "request"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Treatment(_Frozen):
    """What a request is answered with; what is not given stays as it is without the experiment.

    ``depth``: exactly this one; ``max_depth``: no deeper one. ``rules``: as `Rules` of recommender.proto, in JSON.
    """

    bundle: Text | None = None
    policy: Literal["auto", "certified", "rule", "deepest"] | None = None
    depth: int | None = Field(default=None, ge=0, le=32)
    max_depth: int | None = Field(default=None, ge=0, le=32)
    rules: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_depth(self) -> "Treatment":
        if self.depth is not None and self.max_depth is not None:
            raise _wrong("it may have depth or max_depth, not both")
        return self


class Arm(Treatment):
    """An arm. ``share``: of the layer's units; ``up_to``: the share that is reserved for it, so that it may grow."""

    share: Share
    up_to: Share | None = None

    @property
    def reserved(self) -> float:
        """The share of the layer that no other arm can get."""
        return self.share if self.up_to is None else self.up_to

    @model_validator(mode="after")
    def _fits(self) -> "Arm":
        if self.share > self.reserved:
            raise _wrong("its share must not be above up_to")
        return self


class Shadow(Treatment):
    """An arm that answers copies of requests, which nobody waits for. ``share``: of the units."""

    share: Share


class Metric(_Frozen):
    """A number for every unit: of its reported outcomes of one kind, or of what the server measured.

    ``value``: how a unit's number is made: ``total`` of its outcomes, whether there was ``any`` (0 or 1), or
    ``per_request``, where arms are compared by all outcomes over all requests. ``above``: counts only whether a
    measurement is above this. ``minimum_effect``: the relative difference that matters.
    """

    outcome: Text | None = None
    measured: Literal["latency_ms", "error", "agreement"] | None = None
    value: Literal["total", "any", "per_request"] | None = None
    above: float | None = None
    better: Literal["higher", "lower"] | None = None
    minimum_effect: float = Field(default=0.01, gt=0, le=1)

    @model_validator(mode="after")
    def _one_source(self) -> "Metric":
        if (self.outcome is None) == (self.measured is None):
            raise _wrong("it needs outcome or measured, and not both")
        if self.measured and self.value not in (None, "per_request"):
            raise _wrong("what is measured has value: per_request only")
        if self.above is not None and self.measured is None:
            raise _wrong("above belongs to what is measured")
        return self

    @property
    def form(self) -> Literal["total", "any", "per_request"]:
        """How a unit's number is made."""
        return self.value or ("per_request" if self.measured else "total")

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better; by default of latencies, errors and what is above a limit."""
        if self.better is None:
            return self.measured in ("latency_ms", "error")
        return self.better == "lower"


class Guard(Metric):
    """A metric that must not become worse by more than the share ``margin`` of what the control has."""

    margin: float = Field(gt=0, le=10)


class Canary(_Frozen):
    """Limits for one arm, at which it is rolled back; None: not watched.

    ``max_error_rate``: of its requests. ``max_latency_ms``: that at most the share ``slow_share`` may exceed.
    ``max_slowdown``: at most half of its requests may take so many times as long as the control's of the same moment.
    ``min_agreement``: mean share of the control's answer that it gives too. ``alpha``: probability of a wrong rollback,
    and that it is wrongly called ready; ready after ``min_requests`` and ``min_minutes`` at the earliest.
    """

    arm: Name
    max_error_rate: float | None = Field(default=0.01, gt=0, lt=1)
    max_latency_ms: float | None = Field(default=None, gt=0)
    slow_share: float = Field(default=0.01, gt=0, lt=1)
    max_slowdown: float | None = Field(default=None, ge=1)
    min_agreement: float | None = Field(default=None, gt=0, lt=1)
    alpha: Level = 0.01
    min_requests: int = Field(default=1_000, ge=1)
    min_minutes: float = Field(default=10, ge=0)

    @model_validator(mode="after")
    def _watches_something(self) -> "Canary":
        if all(
            each is None for each in (self.max_error_rate, self.max_latency_ms, self.max_slowdown, self.min_agreement)
        ):
            raise _wrong("it watches nothing; give it a limit")
        return self


class Experiment(_Frozen):
    """One experiment. Experiments with the same ``layer`` exclude each other; without, it has a layer of its own.

    ``unit``: what gets an arm, always the same one, and what is counted. ``expected_users``: the number of units at
    which intervals are narrowest. ``window_days``: a unit counts once so many days have passed since it was first
    seen, with what happened in them; None: at once, with all that has happened so far.
    """

    description: str = ""
    layer: Name | None = None
    unit: Unit = "user"
    salt: Text | None = None
    arms: dict[Name, Arm] = Field(min_length=1)
    control: Name = "control"
    shadows: dict[Name, Shadow] = {}
    primary: Metric | None = None
    guards: dict[Name, Guard] = {}
    canary: Canary | None = None
    alpha: Level = 0.05
    expected_users: int = Field(default=10_000, ge=100, le=10_000_000_000)
    window_days: float | None = Field(default=None, gt=0, le=365)

    @property
    def reserved(self) -> float:
        """The share of its layer."""
        return sum(arm.reserved for arm in self.arms.values())

    @model_validator(mode="after")
    def _arms_fit(self) -> "Experiment":
        if self.control not in self.arms:
            raise _wrong(f"it needs an arm called {self.control}, or control: with the name of an arm")
        if len(self.arms) == 1 and not self.shadows:
            raise _wrong("it compares nothing; give it a second arm, or shadows")
        if len(self.arms) > 1 and self.primary is None:
            raise _wrong("it needs primary, the metric that decides")
        if both := self.arms.keys() & self.shadows.keys():
            raise _wrong(f"{min(both)} is the name of an arm and of a shadow; rename one")
        if self.canary and (self.canary.arm == self.control or self.canary.arm not in {**self.arms, **self.shadows}):
            raise _wrong(f"canary.arm {self.canary.arm} is no arm or shadow beside the control")
        return self


class Experiments(_Frozen):
    """The whole file. ``salt`` keys every hash: who knows it can tell which arm a unit gets, and find it in logs."""

    salt: str = Field(min_length=8)
    experiments: dict[Name, Experiment] = Field(min_length=1)

    def layers(self) -> dict[str, dict[str, Experiment]]:
        """Layer -> its experiments by name, both in the order of the file."""
        found: dict[str, dict[str, Experiment]] = {}
        for name, experiment in self.experiments.items():
            found.setdefault(layer_of(name, experiment), {})[name] = experiment
        return found


def layer_of(name: str, experiment: Experiment) -> str:
    """The layer of an experiment; one of its own has a name that no other can have."""
    return experiment.layer or f"={name}"


def load_experiments(path: Path) -> Experiments:
    """Read and check a file; raises ConfigError with the first mistake and its line."""
    document = read_document(path, kind="experiments file", levels=_LEVELS)
    problems = list(document.problems)
    found: Experiments | None = None
    if document.values is not None:
        try:
            found = Experiments.model_validate(document.values)
        except ValidationError as error:
            problems += _explain(document, error.errors())
        else:
            problems += _wrong_layers(found, document)
    if problems or found is None:
        line, message = min(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{path}:{line}: {message}{more}")
    return found


def _wrong_layers(file: Experiments, document: Document) -> Iterator[tuple[int, str]]:
    """Layers whose arms have more than all of its units, or whose experiments count different ones."""
    for layer, experiments in file.layers().items():
        taken, (unit, *others) = 0.0, {experiment.unit for experiment in experiments.values()}
        if others:
            line = document.line(("experiments", next(reversed(experiments))))
            yield line, f"layer {layer}: its experiments must have one unit, not {unit} and {others[0]}"
        for name, experiment in experiments.items():
            taken += experiment.reserved
            if taken > 1 + _ROUNDING:
                what = "its arms" if layer.startswith("=") else f"the arms of layer {layer}"
                yield document.line(("experiments", name)), f"{name}: {what} have shares of {taken:g} in all; at most 1"
                break


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("experiments", "{message}", {"message": message})


# Where pydantic speaks of Python, say it in YAML.
_RULES = {
    "model_type": "it must be a mapping of keys to values",
    "dict_type": "it must be a mapping of names",
    "string_type": "it must be text; put it in quotes",
    "string_too_short": "it is too short",
    "too_short": "it is empty",
    "string_pattern_mismatch": "a name has lower-case letters, digits, hyphens and underscores, at most 63",
}


def _explain(document: Document, errors: list[ErrorDetails]) -> Iterator[tuple[int, str]]:
    """Line and message of each of pydantic's errors, in our words."""
    misspelt: set[Location] = set(document.unreadable)
    for error in errors:
        loc = error["loc"]
        if error["type"] == "extra_forbidden":
            known = _keys_at(loc[:-1])
            near = difflib.get_close_matches(str(loc[-1]), known, n=1)
            misspelt |= {(*loc[:-1], key) for key in near}
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            yield document.line(loc), f"unknown key {_dotted(loc)}; {hint}"
    for error in errors:
        loc, kind = tuple(part for part in error["loc"] if part != "[key]"), error["type"]
        if kind == "missing" and loc not in misspelt:
            yield document.line(loc[:-1]), f"{_dotted(loc)} is missing; add it"
        elif kind == "experiments":
            yield document.line(loc), f"{_dotted(loc)}: {error['msg']}"
        elif kind not in ("missing", "extra_forbidden"):
            rule = _RULES.get(kind) or error["msg"].replace("Input should be", "it must be")
            yield document.line(loc), f"{_dotted(loc)} is {short(error['input'])}; {rule}"


def _keys_at(loc: Location) -> list[str]:
    """The keys that the mapping at this place may have."""
    model: type[BaseModel] = Experiments
    named = False
    for part in loc:
        if named:
            named = False
            continue
        annotation = model.model_fields[str(part)].annotation
        model, named = _model_in(annotation) or model, get_origin(annotation) is dict
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def _dotted(loc: Location) -> str:
    return ".".join(part for part in loc if isinstance(part, str)) or "the file"


def as_stored(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON values, without what is not given."""
    return experiment.model_dump(mode="json", exclude_none=True)


def from_stored(values: Mapping[str, Any]) -> Experiment:
    """What ``as_stored`` gave; raises ValueError, in one line, for anything else."""
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{_dotted(first['loc'])}: {first['msg']}") from None
