"""The one schema that the exporter and the runtime share: ``manifest.json`` of a Bundle.

Every model here is frozen and refuses unknown keys. Paths are relative to the bundle folder.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fathom.files import sha256_bytes
from fathom.runtime.item_vectors import ItemPrecision
from fathom.selector.schema import AnyDepth, Depth, Share

SCHEMA_VERSION: Literal[12] = 12
#: Of the first schema whose version covers the whole manifest, and whose certificates say what each depth runs.
WHOLE_VERSION = 5
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
CATALOGUE_FILE = "items/catalogue.json"
VECTORS_FILE = "items/vectors.npy"
INDEX_FILE = "items/index.faiss"
POPULARITY_FILE = "items/popularity.npy"
TRANSITIONS_FILE = "items/transition_entropy.npy"
OFFSETS_FILE = "counting/offsets.npy"
NEIGHBOURS_FILE = "counting/neighbours.npy"
WEIGHTS_FILE = "counting/weights.npy"
RECENT_FILE = "counting/popularity.npy"
COUNTING_FILES = (OFFSETS_FILE, NEIGHBOURS_FILE, WEIGHTS_FILE, RECENT_FILE)
CHANGES_FILE = "request_time/changes.npy"
CONTEXT_VALUES_FILE = "context/values.json"
CONTEXT_CHANGES_FILE = "context/changes.npy"
CONTEXT_FILES = (CONTEXT_VALUES_FILE, CONTEXT_CHANGES_FILE)
TEXT_KEYS_FILE = "text/keys.npy"
TEXT_WEIGHTS_FILE = "text/weights.npy"
PROJECTION_FILE = "text/projection.npy"
TEXT_FILES = (TEXT_KEYS_FILE, TEXT_WEIGHTS_FILE, PROJECTION_FILE)
SELECTOR_FILE = "selector/selector.json"
CERTIFICATE_FILE = "selector/certificate.json"

#: More than any bundle has: what is larger is refused before memory is taken for it.
LARGEST_FILE = 1 << 40
MOST_ITEMS = 100_000_000
#: Of a search by an index.
MOST_CANDIDATES = 10_000
#: Of the type of an event.
LONGEST_TYPE_BYTES = 64
#: Of the context of a request: features, values of one, and bytes of a feature's name and of a value.
MOST_FEATURES, MOST_VALUES, LONGEST_FEATURE_BYTES, LONGEST_VALUE_BYTES = 8, 10_000, 64, 128

Count = Annotated[int, Field(ge=0, le=1 << 53)]
NotNegative = Annotated[float, Field(ge=0)]
Line = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
EventType = Annotated[str, Field(max_length=LONGEST_TYPE_BYTES)]
Feature = Annotated[str, Field(min_length=1, max_length=LONGEST_FEATURE_BYTES, pattern=r"^[^\x00-\x1f\x7f]*$")]
IndexKind = Literal["ivf", "hnsw", "pq"]
PlanFlavour = Literal["tensorrt", "tensorrt-rtx"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Frozen):
    """Length in bytes and hex sha256 of one file of the bundle."""

    bytes: int = Field(ge=0, le=LARGEST_FILE)
    sha256: Sha256


class ModelInfo(_Frozen):
    """What the engines compute; ``width`` is the length of a user vector and of an item vector."""

    block: str = Field(min_length=1, max_length=64)
    layers: int = Field(ge=1, le=32)
    width: int = Field(ge=1, le=16_384)
    heads: int = Field(ge=1, le=16_384)
    max_history: int = Field(ge=1, le=10_000)
    uses_timestamps: bool


class Parity(_Frozen):
    """Engine against torch on real histories: largest absolute error of the user vector, share of equal top 10."""

    max_abs_error: NotNegative
    top10_agreement: Share
    histories: Count


class MetricInterval(_Frozen):
    """A point estimate with its 95 % bootstrap interval over users."""

    value: float
    low: float
    high: float


class DepthInfo(_Frozen):
    """One depth: the engine files that run one after the other, and the layers they execute, in order."""

    segments: tuple[str, ...] = Field(min_length=1)
    layers: tuple[Annotated[int, Field(ge=0, lt=32)], ...]
    parity: Parity
    quality: dict[str, MetricInterval] = Field(description="metric (as ndcg@10) -> value on the test items")
    loss: MetricInterval | None = Field(
        default=None, description="share of NDCG@10 lost against fp32, where that is not it"
    )


class Extension(_Frozen):
    """The incremental engines of a chain, which compute new positions only (docs/bundle-format.md).

    ``segments``: depth -> engine file. ``steps``: depth -> a file with all of its layers, for few new positions; none
    in older bundles. ``context``: the file that all of them read. ``span``: positions that a layer looks back over,
    its own included. ``max_abs_error``: of the user vector, against a full computation.
    """

    span: int = Field(ge=1, le=10_000)
    context: str
    segments: dict[Depth, str]
    steps: dict[Depth, str] = {}
    max_abs_error: NotNegative

    @property
    def files(self) -> tuple[str, ...]:
        """The engine files that compute layers."""
        return (*self.segments.values(), *self.steps.values())


class CountingInfo(_Frozen):
    """The counting exit, depth 0 (``runtime/counting.py``), and its part in the deeper exits' scores.

    ``window``: items of a history that count. ``decay``: what an item weighs for each one that is newer. ``weights``:
    depth -> what an item's share of the largest count weighs beside its cosine there. ``quality``: of depth 0.
    ``event_weights``: type of an event -> what it weighed in training, 0 where it was left out; none where all weighed
    the same. The others say how the tables were counted: see ``CountingSettings`` in ``training/counting.py``.
    """

    window: int = Field(ge=1, le=10_000)
    decay: float = Field(gt=0, le=1)
    max_lag: int = Field(ge=1, le=10_000)
    backward: float = Field(ge=0, le=100)
    source_power: float = Field(ge=0, le=10)
    target_power: float = Field(ge=0, le=10)
    neighbours: int = Field(ge=1, le=10_000)
    half_life_days: float | None = Field(gt=0, le=1e6)
    ease: float = Field(default=0.0, ge=0, le=1)
    weights: dict[Depth, Annotated[float, Field(ge=0, le=100)]]
    quality: dict[str, MetricInterval] = Field(description="metric (as ndcg@10) -> value on the test items")
    event_weights: dict[EventType, Annotated[float, Field(ge=0, le=1e6)]] = {}


class RequestTimeInfo(_Frozen):
    """What the time of a request changes (``runtime/request_time.py``).

    ``gain``: what that adds to NDCG@10 on the validation items, the mean over depths, paired over users.
    """

    gain: MetricInterval


class ContextInfo(_Frozen):
    """The context of a request (``runtime/context.py``).

    ``features``: those that a request may give -> how many of its values change anything. ``gain``: what that adds to
    NDCG@10 on the validation items, the mean over depths, paired over users; None where nothing changes.
    """

    features: dict[Feature, Annotated[int, Field(ge=0, le=MOST_VALUES)]] = Field(min_length=1, max_length=MOST_FEATURES)
    gain: MetricInterval | None = None


class TextInfo(_Frozen):
    """The text encoder, which places new items (``runtime/text_encoder.py``).

    ``features``: how many it knows. ``cosine``: between a held-out item's trained vector and the one from its text, the
    mean over items.
    """

    features: int = Field(ge=1, le=1 << 24)
    cosine: MetricInterval


class SearchLevel(_Frozen):
    """How an index is searched where so many of the best items are ``wanted``, at most.

    ``effort``: lists that are looked through, or the length of hnsw's queue. ``candidates``: items that it gives.
    """

    wanted: int = Field(ge=1, le=MOST_CANDIDATES)
    effort: int = Field(ge=1, le=1 << 24)
    candidates: int = Field(ge=1, le=MOST_CANDIDATES)


class RetrievalInfo(_Frozen):
    """The index that items are searched by (``runtime/item_index.py``), and what it finds beside the flat search.

    ``lists``: inverted lists; 0 for hnsw. ``levels``: ascending. ``recall``: depth -> the share of the flat search's
    top 10 that it finds on the test histories. ``loss``: depth -> the share of NDCG@10 that it loses there, paired over
    users.
    """

    kind: IndexKind
    lists: int = Field(ge=0, le=1 << 24)
    levels: tuple[SearchLevel, ...] = Field(min_length=1, max_length=64)
    recall: dict[Depth, MetricInterval]
    loss: dict[Depth, MetricInterval]


class Plan(_Frozen):
    """The engines compiled by TensorRT, or by TensorRT-RTX, for one kind of GPU.

    ``version``: of the library. ``compute_capability``: as 8.9. ``gpu`` and ``platform``: the one GPU, by name, and the
    platform, as linux-aarch64, that TensorRT has tuned it for; None: any with that compute capability. ``precision``:
    of the engines, None: the bundle's. ``max_batch``: most requests in a run. ``histories``: the longest history of
    each optimization profile, ascending. ``segments``: engine file -> its plan. ``built_from``: engine file -> its
    sha256 when the plan was built.
    """

    flavour: PlanFlavour = "tensorrt-rtx"
    version: Line
    compute_capability: str = Field(pattern=r"^\d+\.\d$", max_length=8)
    gpu: Name | None = None
    platform: Name | None = None
    precision: Literal["fp32", "fp16"] | None = None
    max_batch: int = Field(ge=1, le=65_536)
    histories: tuple[Count, ...] = Field(min_length=1, max_length=64)
    segments: dict[str, str]
    built_from: dict[str, str]


class DeviceLatency(_Frozen):
    """Milliseconds inside the server of one request alone with so many items; ``depth`` is what it ran."""

    depth: AnyDepth
    history: Count
    p50_ms: NotNegative
    p99_ms: NotNegative


class DeviceCheck(_Frozen):
    """What `fathom profiles check` found when it served the bundle under a profile.

    ``peak_mb``: most resident memory of the server's process; None: it did not run within ``memory_limit_mb``, and
    ``words`` says why.
    """

    memory_limit_mb: Count
    threads: Count
    peak_mb: NotNegative | None
    latency: tuple[DeviceLatency, ...] = ()
    words: str = ""
    machine: str
    created: Line

    def fits(self, memory_limit_mb: int) -> bool:
        """Whether serving stays within so much memory."""
        return memory_limit_mb > self.memory_limit_mb if self.peak_mb is None else self.peak_mb <= memory_limit_mb


class Provenance(_Frozen):
    """Where the bundle came from: sha256 of its inputs, how data were split, Fathom's version, the commit if known."""

    dataset: Line
    checkpoint: Line
    plan: Line
    fathom: Line
    commit: Line | None
    split: Line | None = None


class Manifest(_Frozen):
    """``manifest.json``: everything that is needed to open, check and describe a bundle.

    ``version`` follows from everything else but ``created``: see ``version_of``. Writers let ``sealed`` set it.
    """

    schema_version: Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] = SCHEMA_VERSION
    name: Name
    version: Line
    created: Line
    strategy: Literal["prefix", "nested", "permuted-prefix", "greedy", "lattice"]
    strategy_evidence: dict[str, dict[str, MetricInterval]] = Field(
        description="strategy -> metric at depth (as ndcg@10/4) on validation items, for every plan that was compared"
    )
    precision: Literal["fp32", "fp16", "int8", "int4", "int4+lora", "mixed"]
    format: Literal["onnx", "ort", "executorch"]
    model: ModelInfo
    items: int = Field(ge=1, le=MOST_ITEMS)
    item_precision: ItemPrecision = Field(default="fp32", description="of the item vectors")
    layer_precision: dict[int, Literal["fp32", "int8", "int4"]] = Field(
        default={}, description="layer -> its own precision, where they are mixed"
    )
    depths: dict[Depth, DepthInfo] = Field(min_length=1)
    counting: CountingInfo | None = None
    request_time: RequestTimeInfo | None = None
    context: ContextInfo | None = None
    text: TextInfo | None = None
    retrieval: RetrievalInfo | None = Field(default=None, description="None: flat, every item is scored")
    extension: Extension | None = None
    plans: tuple[Plan, ...] = ()
    files: dict[str, FileEntry]
    source: Provenance
    profile: Line | None = Field(default=None, description="the profile that `slice` made this bundle for")
    fits: dict[str, DeviceCheck] = Field(default={}, description="profile -> what serving under it took")

    @property
    def served_depths(self) -> tuple[int, ...]:
        """The depths that can answer, ascending: those of the engines, and 0 where there is a counting exit."""
        return (*([] if self.counting is None else [0]), *sorted(self.depths))

    @property
    def quality(self) -> dict[int, dict[str, MetricInterval]]:
        """Depth, ascending -> metric (as ndcg@10) -> value on the test items; depth 0 is the counting exit."""
        counted = {} if self.counting is None else {0: self.counting.quality}
        return counted | {depth: info.quality for depth, info in sorted(self.depths.items())}


def version_of(value: Mapping[str, Any]) -> str:
    """The version that a manifest must have, given as JSON: 12 hex digits of a sha256.

    It is taken over the manifest's canonical JSON without ``version`` and without ``created``, on which no answer
    depends; so what is made twice from the same inputs has the same version. Before schema 5: over its ``files`` alone.
    """
    if value["schema_version"] < WHOLE_VERSION:
        lines = [f"{name} {entry['bytes']} {entry['sha256']}\n" for name, entry in sorted(value["files"].items())]
        return sha256_bytes("".join(lines).encode())[:12]
    covered = {key: each for key, each in value.items() if key not in ("version", "created")}
    return sha256_bytes(_canonical(covered))[:12]


def sealed(manifest: Manifest) -> Manifest:
    """The manifest as it is written: of the newest schema, with the version that follows from it.

    One with a certificate keeps a schema below 5: such a certificate may say too little for a newer one.
    """
    if CERTIFICATE_FILE not in manifest.files or manifest.schema_version >= WHOLE_VERSION:
        manifest = manifest.model_copy(update={"schema_version": SCHEMA_VERSION})
    return manifest.model_copy(update={"version": version_of(manifest.model_dump(mode="json"))})


def content_version(manifest: Manifest) -> str:
    """12 hex digits over all that answers depend on; unlike ``version`` it stays when a bundle is certified."""
    files = {name: entry.sha256 for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
    return sha256_bytes(_canonical({"files": files, "depths": depth_digests(manifest)}))[:12]


def depth_digests(manifest: Manifest) -> dict[int, str]:
    """Depth, ascending -> its ``depth_digest``, of all that answer: depth 0 too where there is a counting exit."""
    return {depth: depth_digest(manifest, depth) for depth in manifest.served_depths}


def depth_digest(manifest: Manifest, depth: int) -> str:
    """Hex sha256 over what a depth's answers are computed by: the model, layers, and engines in the order they run.

    And the counting exit, the time of a request and its context, where they have a part; depth 0 is the first alone.
    """
    sha256 = {name: entry.sha256 for name, entry in manifest.files.items()}
    counting, extension = manifest.counting, manifest.extension
    counted = [] if counting is None else [counting.window, counting.decay, *(sha256[name] for name in COUNTING_FILES)]
    if depth == 0:
        return sha256_bytes(_canonical({"counting": counted}))
    info = manifest.depths[depth]
    runs: dict[str, Any] = {
        "model": manifest.model.model_dump(),
        "item_precision": manifest.item_precision,
        "layers": info.layers,
        "segments": [sha256[name] for name in info.segments],
        "plans": [
            [plan.version, plan.compute_capability, [sha256[plan.segments[name]] for name in info.segments]]
            for plan in manifest.plans
        ],
    }
    if manifest.retrieval is not None:
        runs["retrieval"] = [sha256[INDEX_FILE], [level.model_dump() for level in manifest.retrieval.levels]]
    if counting is not None and counting.weights[depth]:
        runs["counting"] = [counting.weights[depth], *counted]
    if manifest.request_time is not None:
        runs["request_time"] = sha256[CHANGES_FILE]
    if manifest.context is not None and manifest.context.gain is not None:
        runs["context"] = [sha256[name] for name in CONTEXT_FILES]
    if extension is not None:
        passed = [sha256[extension.segments[each]] for each in sorted(extension.segments) if each <= depth]
        step = [sha256[extension.steps[depth]]] if extension.steps else []
        runs["extension"] = [extension.span, sha256[extension.context], passed, *step]
    return sha256_bytes(_canonical(runs))


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
