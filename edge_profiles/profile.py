"""What a device can do and how deep it should go: one YAML file per device, read into a DeviceProfile.

``load_profile("jetson-orin-nano")`` reads a shipped profile, ``load_profile("edge")`` the tier's default one, and
``load_profile("mine.yaml")`` a file of your own. Every mistake is reported as ``file:line: what, what to do``.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from fathom.edge_profiles.document import Document, Location, read_document, short
from fathom.errors import ConfigError

SUFFIX = ".yaml"
TIER_DEFAULTS = {"mobile": "phone-high", "edge": "jetson-orin-nano", "cloud": "cloud-cpu"}
#: The most memory that a shipped profile of a tier lets its server take, in MB.
TIER_LIMITS_MB = {"mobile": 100, "edge": 500, "cloud": 2048}
#: What `fathom profiles merge` takes from reports.
MEASURABLE = ("memory_limit_mb", "latency_budget_ms")
#: What a profile says that is no fact about the hardware.
FIGURES = (
    *("depths", "shallow", "deep", "threshold", "precision", "item_precision", "max_loss", "min_recall"),
    *("memory_limit_mb", "latency_budget_ms", "threads", "max_batch", "max_batch_tokens"),
)
_FOLDER = Path(__file__).parent

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Text = Annotated[str, Field(min_length=1)]
Depth = Annotated[int, Field(ge=1, le=32)]
Depths = Annotated[
    tuple[Annotated[int, Field(ge=0, le=32)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]
#: Pairs, so that a profile can be hashed; a mapping in a file.
Measured = Annotated[
    tuple[tuple[Text, Text], ...],
    BeforeValidator(lambda value: tuple(value.items()) if isinstance(value, dict) else value),
    PlainSerializer(dict),
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Device(_Frozen):
    """The hardware as its vendor publishes it; None where the vendor publishes nothing. 1 GB is 1024 MB.

    ``memory_mb`` and ``memory_bandwidth_gb_s`` are those of the memory that holds the engines: a discrete GPU's own,
    else the main memory. ``peak_tops`` is 10^12 operations a second of the kind that ``peak_kind`` names.
    """

    model: Text
    cpu_cores: Count
    memory_mb: Count
    memory_bandwidth_gb_s: float | None = Field(default=None, gt=0)
    peak_tops: float | None = Field(default=None, gt=0)
    peak_kind: Literal["fp16", "int8", "int8 sparse"] | None = Field(default=None, validate_default=True)
    power_w: float | None = Field(default=None, gt=0, description="highest power of the module or card")

    @field_validator("peak_kind")
    @classmethod
    def _kind_belongs_to_peak(cls, kind: str | None, info: ValidationInfo) -> str | None:
        if "peak_tops" in info.data and (kind is None) != (info.data["peak_tops"] is None):
            raise _wrong("peak_tops and peak_kind belong together: give both or neither")
        return kind


class DeviceProfile(_Frozen):
    """How Fathom runs on one kind of device.

    ``device`` and ``source`` are facts; everything else is a choice that ``source`` names as ours. By the rule, the
    share ``threshold`` of requests, those of least complexity, goes to ``shallow``, the others to ``deep``; ``depths``
    are all the depths that a deadline may fall back to, where 0 is the counting exit. ``precision`` and
    ``item_precision`` are those to build for it. Memory in MB (1024 * 1024 bytes), time in ms, batch sizes in requests
    and in padded tokens. ``measured``: figure -> on what, of those that `fathom profiles merge` took from reports.
    """

    name: str
    tier: Literal["mobile", "edge", "cloud"]
    description: Text
    device: Device | None = None
    depths: Depths
    shallow: Depth
    deep: Depth
    threshold: float = Field(ge=0, le=1)
    precision: Literal["fp32", "fp16", "int8", "int4", "int4+lora"]
    item_precision: Literal["fp32", "fp16", "int8"] = "fp32"
    max_loss: float = Field(default=0.01, ge=0, lt=1, description="share of NDCG@10 that the precision may cost")
    min_recall: float = Field(default=0.99, ge=0, le=1, description="share of the top 10 that an index must find")
    memory_limit_mb: Count
    latency_budget_ms: float = Field(gt=0)
    threads: Count
    max_batch: Count
    max_batch_tokens: Count
    measured: Measured = ()
    source: Text

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
            raise _wrong("it must be lower-case letters, digits and hyphens, as in my-box")
        return name

    @field_validator("depths")
    @classmethod
    def _ascending(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        if not depths or list(depths) != sorted(set(depths)):
            raise _wrong("it must be ascending, each depth once, as in [4, 8, 12]")
        return depths

    @field_validator("shallow", "deep")
    @classmethod
    def _allowed(cls, depth: int, info: ValidationInfo) -> int:
        depths = info.data.get("depths")
        if depths is not None and depth not in depths:
            raise _wrong(f"it must be one of depths ({', '.join(map(str, depths))})")
        if info.field_name == "deep" and depth < info.data.get("shallow", depth):
            raise _wrong(f"it must not be below shallow ({info.data['shallow']})")
        return depth

    @field_validator("measured")
    @classmethod
    def _known(cls, measured: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        unknown = [figure for figure, _ in measured if figure not in MEASURABLE]
        if unknown:
            raise _wrong(f"{unknown[0]} cannot be measured; {' and '.join(MEASURABLE)} can")
        return measured

    @field_validator("memory_limit_mb", "threads")
    @classmethod
    def _within_device(cls, value: int, info: ValidationInfo) -> int:
        device = info.data.get("device")
        if device is None:
            return value
        figure = "memory_mb" if info.field_name == "memory_limit_mb" else "cpu_cores"
        most = getattr(device, figure)
        if value > most:
            raise _wrong(f"the device has only {most} ({figure})")
        return value

    def basis(self, figure: str) -> str:
        """Where one of FIGURES comes from: "chosen", or "measured" and on what."""
        on = dict(self.measured).get(figure)
        return "chosen" if on is None else f"measured: {on}"


def profile_names() -> tuple[str, ...]:
    """Names of the profiles that ship with Fathom, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}")))


def load_profile(name: str | Path) -> DeviceProfile:
    """A shipped profile by name, a tier's default profile by tier, or a YAML file of your own by path.

    What ends in .yaml or .yml, or contains a slash, is a path. Raises ConfigError.
    """
    text = str(name)
    if isinstance(name, Path) or text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        return _load(Path(name))
    shipped = TIER_DEFAULTS.get(text, text)
    names = profile_names()
    if shipped not in names:
        near = difflib.get_close_matches(text, [*names, *TIER_DEFAULTS], n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}."
        raise ConfigError(f"no profile {text!r}; {hint} For your own, give the path of a .yaml file.")
    return _load(_FOLDER / f"{shipped}{SUFFIX}")


def check(path: Path) -> DeviceProfile | list[str]:
    """The profile in a YAML file, or every mistake in it as ``file:line: what``, in the order of the lines."""
    document = read_document(path)
    problems = list(document.problems)
    if document.values is not None:
        try:
            profile = DeviceProfile.model_validate(document.values)
        except ValidationError as error:
            problems += _explain(document, error.errors())
        else:
            if _takes_a_name(path, profile):
                line = document.line(("name",))
                problems.append((line, f"name: {profile.name} is one of Fathom's own profiles; choose another"))
            if not problems:
                return profile
    problems.sort(key=lambda problem: problem[0])
    return [f"{path}:{line}: {message}" for line, message in problems]


def _takes_a_name(path: Path, profile: DeviceProfile) -> bool:
    """Whether a file of somebody's own has the name of a shipped profile that says something else."""
    if path.resolve().parent == _FOLDER.resolve() or profile.name not in {*profile_names(), *TIER_DEFAULTS}:
        return False
    return load_profile(profile.name) != profile


def _load(path: Path) -> DeviceProfile:
    found = check(path)
    if isinstance(found, DeviceProfile):
        return found
    more = f" (and {len(found) - 1} more: fathom profiles check {path})" if len(found) > 1 else ""
    raise ConfigError(found[0] + more)


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("profile", "{message}", {"message": message})


def _explain(document: Document, errors: list[ErrorDetails]) -> list[tuple[int, str]]:
    """Line and message of each of pydantic's errors, in our words."""
    # A key that was given but misspelt, or whose value could not be read, is not also missing.
    accounted = set(document.unreadable)
    problems = []
    for error in errors:
        if error["type"] == "extra_forbidden":
            loc = error["loc"]
            known = (Device if loc[0] == "device" else DeviceProfile).model_fields
            near = difflib.get_close_matches(str(loc[-1]), known, n=1)
            accounted |= {(*loc[:-1], key) for key in near}
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            problems.append((document.line(loc), f"unknown key {_dotted(loc)}; {hint}"))
    for error in errors:
        loc = error["loc"]
        if error["type"] == "missing" and loc not in accounted:
            problems.append((document.line(loc[:-1]), f"{_dotted(loc)} is missing; add it"))
        elif error["type"] not in ("missing", "extra_forbidden"):
            rule = _RULES.get(error["type"]) or error["msg"].replace("Input should be", "it must be")
            problems.append((document.line(loc), f"{_dotted(loc)} is {short(error['input'])}; {rule}"))
    return problems


# Where pydantic speaks of Python, say it in YAML.
_RULES = {
    "model_type": "it must be a mapping of keys to values",
    "tuple_type": "it must be a list, as in [4, 8, 12]",
    "string_type": "it must be text; put it in quotes",
    "string_too_short": "it must not be empty",
}


def _dotted(loc: Location) -> str:
    return ".".join(part for part in loc if isinstance(part, str))
