"""The one schema that the exporter and the runtime share: ``manifest.json`` of a Bundle.

Every model here is frozen and refuses unknown keys. Paths are relative to the bundle folder.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fathom.runtime.item_vectors import ItemPrecision

SCHEMA_VERSION = 4
MANIFEST_NAME = "manifest.json"
CATALOGUE_FILE = "items/catalogue.json"
VECTORS_FILE = "items/vectors.npy"
POPULARITY_FILE = "items/popularity.npy"
TRANSITIONS_FILE = "items/transition_entropy.npy"
SELECTOR_FILE = "selector/selector.json"
CERTIFICATE_FILE = "selector/certificate.json"

Depth = Annotated[int, Field(ge=1, le=32)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """Length in bytes and hex sha256 of one file of the bundle."""

    bytes: int
    sha256: str


class ModelInfo(_Frozen):
    """What the engines compute; ``width`` is the length of a user vector and of an item vector."""

    block: Literal["hstu", "gated"]
    layers: int
    width: int
    heads: int
    max_history: int
    uses_timestamps: bool


class Parity(_Frozen):
    """Engine against torch on real histories: largest absolute error of the user vector, share of equal top 10."""

    max_abs_error: float
    top10_agreement: float
    histories: int


class Interval(_Frozen):
    """A point estimate with its 95 % bootstrap interval over users."""

    value: float
    low: float
    high: float


class DepthInfo(_Frozen):
    """One depth: the engine files that run one after the other, and the layers they execute, in order."""

    segments: tuple[str, ...]
    layers: tuple[int, ...]
    parity: Parity
    quality: dict[str, Interval] = Field(description="metric (as ndcg@10) -> value on the test items")
    loss: Interval | None = Field(default=None, description="share of NDCG@10 lost against fp32, where that is not it")


class Extension(_Frozen):
    """The second form of a chain of segments, which computes new positions only (docs/bundle-format.md).

    ``segments``: depth -> engine file. ``context``: the file that all of them read. ``span``: positions that a layer
    looks back over, its own included. ``max_abs_error``: of the user vector, against computing afresh.
    """

    span: int = Field(ge=1)
    context: str
    segments: dict[Depth, str]
    max_abs_error: float


class Plan(_Frozen):
    """The engines compiled by TensorRT-RTX for one kind of GPU.

    ``version``: of the library. ``compute_capability``: as 8.9. ``max_batch``: most requests in a run. ``histories``:
    the longest history of each optimization profile, ascending. ``segments``: engine file -> its plan. ``built_from``:
    engine file -> its sha256 when the plan was built.
    """

    version: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    max_batch: int = Field(ge=1)
    histories: tuple[int, ...] = Field(min_length=1)
    segments: dict[str, str]
    built_from: dict[str, str]


class Latency(_Frozen):
    """Milliseconds inside the server of one request alone with so many items; ``depth`` is what it ran."""

    depth: Depth
    history: int
    p50_ms: float
    p99_ms: float


class Fit(_Frozen):
    """What `fathom profiles check` found when it served the bundle under a profile.

    ``peak_mb``: most resident memory of the server's process; None: it did not run within ``memory_limit_mb``, and
    ``words`` says why.
    """

    memory_limit_mb: int
    threads: int
    peak_mb: float | None
    latency: tuple[Latency, ...] = ()
    words: str = ""
    machine: str
    created: str

    def fits(self, memory_limit_mb: int) -> bool:
        """Whether serving stays within so much memory."""
        return memory_limit_mb > self.memory_limit_mb if self.peak_mb is None else self.peak_mb <= memory_limit_mb


class Source(_Frozen):
    """Where the bundle came from: sha256 of its inputs, how data were split, Fathom's version, the commit if known."""

    dataset: str
    checkpoint: str
    plan: str
    fathom: str
    commit: str | None
    split: str | None = None


class Manifest(_Frozen):
    """``manifest.json``: everything that is needed to open, check and describe a bundle.

    ``version`` is the first 12 hex digits of the sha256 over all file entries, so equal bundles have equal versions.
    """

    schema_version: Literal[1, 2, 3, 4] = 4
    name: str
    version: str
    created: str
    strategy: Literal["prefix", "nested", "permuted-prefix", "greedy", "lattice"]
    strategy_evidence: dict[str, dict[str, Interval]] = Field(
        description="strategy -> metric at depth (as ndcg@10/4) on validation items, for every plan that was compared"
    )
    precision: Literal["fp32", "fp16", "int8", "int4", "mixed"]
    format: Literal["onnx", "ort", "executorch"]
    model: ModelInfo
    items: int
    item_precision: ItemPrecision = Field(default="fp32", description="of the item vectors")
    layer_precision: dict[int, Literal["fp32", "int8", "int4"]] = Field(
        default={}, description="layer -> its own precision, where they are mixed"
    )
    depths: dict[Depth, DepthInfo]
    extension: Extension | None = None
    plans: tuple[Plan, ...] = ()
    files: dict[str, FileEntry]
    source: Source
    profile: str | None = Field(default=None, description="the profile that `slice` made this bundle for")
    fits: dict[str, Fit] = Field(default={}, description="profile -> what serving under it took")


def bundle_version(files: Mapping[str, FileEntry]) -> str:
    """The version that follows from the contents: 12 hex digits over the sorted lines ``path bytes sha256``."""
    lines = [f"{name} {entry.bytes} {entry.sha256}\n" for name, entry in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
