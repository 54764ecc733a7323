from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DepthReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPTH_REASON_UNSPECIFIED: _ClassVar[DepthReason]
    DEPTH_REASON_FIXED: _ClassVar[DepthReason]
    DEPTH_REASON_SIMPLE: _ClassVar[DepthReason]
    DEPTH_REASON_COMPLEX: _ClassVar[DepthReason]
    DEPTH_REASON_DEADLINE: _ClassVar[DepthReason]
    DEPTH_REASON_CERTIFIED: _ClassVar[DepthReason]
    DEPTH_REASON_DEEPEST: _ClassVar[DepthReason]
    DEPTH_REASON_FALLBACK: _ClassVar[DepthReason]
    DEPTH_REASON_POPULAR: _ClassVar[DepthReason]
DEPTH_REASON_UNSPECIFIED: DepthReason
DEPTH_REASON_FIXED: DepthReason
DEPTH_REASON_SIMPLE: DepthReason
DEPTH_REASON_COMPLEX: DepthReason
DEPTH_REASON_DEADLINE: DepthReason
DEPTH_REASON_CERTIFIED: DepthReason
DEPTH_REASON_DEEPEST: DepthReason
DEPTH_REASON_FALLBACK: DepthReason
DEPTH_REASON_POPULAR: DepthReason

class RecommendRequest(_message.Message):
    __slots__ = ("request_id", "item_ids", "timestamps", "k", "profile", "depth", "filter", "include_titles", "user_id", "bundle", "strict", "include_reasons", "rules", "event_types", "session_id", "request_time", "context")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TITLES_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_REASONS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    timestamps: _containers.RepeatedScalarFieldContainer[int]
    k: int
    profile: str
    depth: int
    filter: Filter
    include_titles: bool
    user_id: str
    bundle: str
    strict: bool
    include_reasons: bool
    rules: Rules
    event_types: _containers.RepeatedScalarFieldContainer[str]
    session_id: str
    request_time: int
    context: _containers.ScalarMap[str, str]
    def __init__(self, request_id: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., timestamps: _Optional[_Iterable[int]] = ..., k: _Optional[int] = ..., profile: _Optional[str] = ..., depth: _Optional[int] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., include_titles: _Optional[bool] = ..., user_id: _Optional[str] = ..., bundle: _Optional[str] = ..., strict: _Optional[bool] = ..., include_reasons: _Optional[bool] = ..., rules: _Optional[_Union[Rules, _Mapping]] = ..., event_types: _Optional[_Iterable[str]] = ..., session_id: _Optional[str] = ..., request_time: _Optional[int] = ..., context: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    def __init__(self, bundle: _Optional[str] = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("bundles", "workers_behind")
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[Reloaded]
    workers_behind: int
    def __init__(self, bundles: _Optional[_Iterable[_Union[Reloaded, _Mapping]]] = ..., workers_behind: _Optional[int] = ...) -> None: ...

class Reloaded(_message.Message):
    __slots__ = ("bundle", "version", "previous", "error")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    version: str
    previous: str
    error: str
    def __init__(self, bundle: _Optional[str] = ..., version: _Optional[str] = ..., previous: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class AppendEventsRequest(_message.Message):
    __slots__ = ("user_id", "events")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, user_id: _Optional[str] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("event_id", "item_id", "timestamp", "type")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    item_id: str
    timestamp: int
    type: str
    def __init__(self, event_id: _Optional[str] = ..., item_id: _Optional[str] = ..., timestamp: _Optional[int] = ..., type: _Optional[str] = ...) -> None: ...

class AppendEventsResponse(_message.Message):
    __slots__ = ("appended", "already_known", "too_old", "before_deletion")
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    ALREADY_KNOWN_FIELD_NUMBER: _ClassVar[int]
    TOO_OLD_FIELD_NUMBER: _ClassVar[int]
    BEFORE_DELETION_FIELD_NUMBER: _ClassVar[int]
    appended: int
    already_known: int
    too_old: int
    before_deletion: int
    def __init__(self, appended: _Optional[int] = ..., already_known: _Optional[int] = ..., too_old: _Optional[int] = ..., before_deletion: _Optional[int] = ...) -> None: ...

class DeleteUserRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class DeleteUserResponse(_message.Message):
    __slots__ = ("deleted", "workers_behind")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    workers_behind: int
    def __init__(self, deleted: _Optional[int] = ..., workers_behind: _Optional[int] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("include_seen", "exclude_item_ids", "allow_item_ids", "categories", "ranges", "seen_types", "block_lists")
    INCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    SEEN_TYPES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_LISTS_FIELD_NUMBER: _ClassVar[int]
    include_seen: bool
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    allow_item_ids: _containers.RepeatedScalarFieldContainer[str]
    categories: _containers.RepeatedScalarFieldContainer[str]
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    seen_types: _containers.RepeatedScalarFieldContainer[str]
    block_lists: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, include_seen: _Optional[bool] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., allow_item_ids: _Optional[_Iterable[str]] = ..., categories: _Optional[_Iterable[str]] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., seen_types: _Optional[_Iterable[str]] = ..., block_lists: _Optional[_Iterable[str]] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("attribute", "at_least", "at_most")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    at_least: float
    at_most: float
    def __init__(self, attribute: _Optional[str] = ..., at_least: _Optional[float] = ..., at_most: _Optional[float] = ...) -> None: ...

class Rules(_message.Message):
    __slots__ = ("pins", "boosts", "caps", "diversity")
    PINS_FIELD_NUMBER: _ClassVar[int]
    BOOSTS_FIELD_NUMBER: _ClassVar[int]
    CAPS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    boosts: _containers.RepeatedCompositeFieldContainer[Boost]
    caps: _containers.RepeatedCompositeFieldContainer[Cap]
    diversity: float
    def __init__(self, pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ..., boosts: _Optional[_Iterable[_Union[Boost, _Mapping]]] = ..., caps: _Optional[_Iterable[_Union[Cap, _Mapping]]] = ..., diversity: _Optional[float] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("item_id", "position")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    position: int
    def __init__(self, item_id: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class Boost(_message.Message):
    __slots__ = ("item_id", "category", "amount")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    category: str
    amount: float
    def __init__(self, item_id: _Optional[str] = ..., category: _Optional[str] = ..., amount: _Optional[float] = ...) -> None: ...

class Cap(_message.Message):
    __slots__ = ("category", "at_most")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    category: str
    at_most: int
    def __init__(self, category: _Optional[str] = ..., at_most: _Optional[int] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("request_id", "items", "depth", "reason", "why", "complexity", "history_used", "unknown_items", "timings", "bundle_version", "catalogue_version", "experiments")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    COMPLEXITY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_USED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    depth: int
    reason: DepthReason
    why: str
    complexity: float
    history_used: int
    unknown_items: int
    timings: Timings
    bundle_version: str
    catalogue_version: int
    experiments: _containers.RepeatedCompositeFieldContainer[ExperimentArm]
    def __init__(self, request_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., depth: _Optional[int] = ..., reason: _Optional[_Union[DepthReason, str]] = ..., why: _Optional[str] = ..., complexity: _Optional[float] = ..., history_used: _Optional[int] = ..., unknown_items: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., bundle_version: _Optional[str] = ..., catalogue_version: _Optional[int] = ..., experiments: _Optional[_Iterable[_Union[ExperimentArm, _Mapping]]] = ...) -> None: ...

class ExperimentArm(_message.Message):
    __slots__ = ("experiment", "arm")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    arm: str
    def __init__(self, experiment: _Optional[str] = ..., arm: _Optional[str] = ...) -> None: ...

class ReportOutcomesRequest(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("request_id", "kind", "value", "item_id", "timestamp")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    kind: str
    value: float
    item_id: str
    timestamp: int
    def __init__(self, request_id: _Optional[str] = ..., kind: _Optional[str] = ..., value: _Optional[float] = ..., item_id: _Optional[str] = ..., timestamp: _Optional[int] = ...) -> None: ...

class ReportOutcomesResponse(_message.Message):
    __slots__ = ("noted",)
    NOTED_FIELD_NUMBER: _ClassVar[int]
    noted: int
    def __init__(self, noted: _Optional[int] = ...) -> None: ...

class ListExperimentsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExperimentsResponse(_message.Message):
    __slots__ = ("experiments",)
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[ExperimentStatus]
    def __init__(self, experiments: _Optional[_Iterable[_Union[ExperimentStatus, _Mapping]]] = ...) -> None: ...

class ExperimentStatus(_message.Message):
    __slots__ = ("name", "phase", "arm", "reason", "since", "arms", "canary")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    name: str
    phase: str
    arm: str
    reason: str
    since: int
    arms: _containers.RepeatedCompositeFieldContainer[ArmStatus]
    canary: str
    def __init__(self, name: _Optional[str] = ..., phase: _Optional[str] = ..., arm: _Optional[str] = ..., reason: _Optional[str] = ..., since: _Optional[int] = ..., arms: _Optional[_Iterable[_Union[ArmStatus, _Mapping]]] = ..., canary: _Optional[str] = ...) -> None: ...

class ArmStatus(_message.Message):
    __slots__ = ("name", "share", "requests", "failed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    name: str
    share: float
    requests: int
    failed: int
    def __init__(self, name: _Optional[str] = ..., share: _Optional[float] = ..., requests: _Optional[int] = ..., failed: _Optional[int] = ...) -> None: ...

class ChangeExperimentRequest(_message.Message):
    __slots__ = ("name", "action", "arm")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[ChangeExperimentRequest.Action]
        START: _ClassVar[ChangeExperimentRequest.Action]
        STOP: _ClassVar[ChangeExperimentRequest.Action]
        PROMOTE: _ClassVar[ChangeExperimentRequest.Action]
    ACTION_UNSPECIFIED: ChangeExperimentRequest.Action
    START: ChangeExperimentRequest.Action
    STOP: ChangeExperimentRequest.Action
    PROMOTE: ChangeExperimentRequest.Action
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: ChangeExperimentRequest.Action
    arm: str
    def __init__(self, name: _Optional[str] = ..., action: _Optional[_Union[ChangeExperimentRequest.Action, str]] = ..., arm: _Optional[str] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("id", "score", "title", "reasons")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    title: str
    reasons: _containers.RepeatedCompositeFieldContainer[ItemReason]
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., title: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[ItemReason, _Mapping]]] = ...) -> None: ...

class ItemReason(_message.Message):
    __slots__ = ("item_id", "source", "amount")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SOURCE_UNSPECIFIED: _ClassVar[ItemReason.Source]
        COUNTING: _ClassVar[ItemReason.Source]
        NETWORK: _ClassVar[ItemReason.Source]
    SOURCE_UNSPECIFIED: ItemReason.Source
    COUNTING: ItemReason.Source
    NETWORK: ItemReason.Source
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    source: ItemReason.Source
    amount: float
    def __init__(self, item_id: _Optional[str] = ..., source: _Optional[_Union[ItemReason.Source, str]] = ..., amount: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("select_us", "queue_us", "engine_us", "retrieval_us", "total_us")
    SELECT_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    ENGINE_US_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    select_us: int
    queue_us: int
    engine_us: int
    retrieval_us: int
    total_us: int
    def __init__(self, select_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., engine_us: _Optional[int] = ..., retrieval_us: _Optional[int] = ..., total_us: _Optional[int] = ...) -> None: ...

class RecommendBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecommendRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecommendRequest, _Mapping]]] = ...) -> None: ...

class RecommendBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RecommendResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RecommendResult, _Mapping]]] = ...) -> None: ...

class RecommendResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: RecommendResponse
    error: RecommendError
    def __init__(self, response: _Optional[_Union[RecommendResponse, _Mapping]] = ..., error: _Optional[_Union[RecommendError, _Mapping]] = ...) -> None: ...

class RecommendError(_message.Message):
    __slots__ = ("request_id", "code", "message", "retry_after_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    code: int
    message: str
    retry_after_ms: int
    def __init__(self, request_id: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class GetBundleRequest(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    def __init__(self, bundle: _Optional[str] = ...) -> None: ...

class GetBundleResponse(_message.Message):
    __slots__ = ("name", "version", "strategy", "precision", "items", "max_history", "uses_timestamps", "depths", "default_profile", "profiles", "engine", "routing", "bundles", "transport", "drift", "context")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_FIELD_NUMBER: _ClassVar[int]
    USES_TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    DEPTHS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PROFILE_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    strategy: str
    precision: str
    items: int
    max_history: int
    uses_timestamps: bool
    depths: _containers.RepeatedCompositeFieldContainer[DepthQuality]
    default_profile: str
    profiles: _containers.RepeatedCompositeFieldContainer[ProfileInfo]
    engine: str
    routing: Routing
    bundles: _containers.RepeatedScalarFieldContainer[str]
    transport: str
    drift: Drift
    context: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., strategy: _Optional[str] = ..., precision: _Optional[str] = ..., items: _Optional[int] = ..., max_history: _Optional[int] = ..., uses_timestamps: _Optional[bool] = ..., depths: _Optional[_Iterable[_Union[DepthQuality, _Mapping]]] = ..., default_profile: _Optional[str] = ..., profiles: _Optional[_Iterable[_Union[ProfileInfo, _Mapping]]] = ..., engine: _Optional[str] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., bundles: _Optional[_Iterable[str]] = ..., transport: _Optional[str] = ..., drift: _Optional[_Union[Drift, _Mapping]] = ..., context: _Optional[_Iterable[str]] = ...) -> None: ...

class Drift(_message.Message):
    __slots__ = ("samples", "features")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    samples: int
    features: _containers.RepeatedCompositeFieldContainer[FeatureDrift]
    def __init__(self, samples: _Optional[int] = ..., features: _Optional[_Iterable[_Union[FeatureDrift, _Mapping]]] = ...) -> None: ...

class FeatureDrift(_message.Message):
    __slots__ = ("name", "mean_rank", "alarm")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEAN_RANK_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    name: str
    mean_rank: float
    alarm: bool
    def __init__(self, name: _Optional[str] = ..., mean_rank: _Optional[float] = ..., alarm: _Optional[bool] = ...) -> None: ...

class Routing(_message.Message):
    __slots__ = ("policy", "certified", "eps", "delta", "feedback_samples", "feedback_agreement", "expected_agreement", "alarm", "recertification_attempts", "recertified", "recertification_samples", "recertification_needed", "kind")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    RECERTIFICATION_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    RECERTIFIED_FIELD_NUMBER: _ClassVar[int]
    RECERTIFICATION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RECERTIFICATION_NEEDED_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    policy: str
    certified: bool
    eps: float
    delta: float
    feedback_samples: int
    feedback_agreement: float
    expected_agreement: float
    alarm: bool
    recertification_attempts: int
    recertified: int
    recertification_samples: int
    recertification_needed: int
    kind: str
    def __init__(self, policy: _Optional[str] = ..., certified: _Optional[bool] = ..., eps: _Optional[float] = ..., delta: _Optional[float] = ..., feedback_samples: _Optional[int] = ..., feedback_agreement: _Optional[float] = ..., expected_agreement: _Optional[float] = ..., alarm: _Optional[bool] = ..., recertification_attempts: _Optional[int] = ..., recertified: _Optional[int] = ..., recertification_samples: _Optional[int] = ..., recertification_needed: _Optional[int] = ..., kind: _Optional[str] = ...) -> None: ...

class DepthQuality(_message.Message):
    __slots__ = ("depth", "quality")
    class QualityEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: QualityInterval
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[QualityInterval, _Mapping]] = ...) -> None: ...
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    depth: int
    quality: _containers.MessageMap[str, QualityInterval]
    def __init__(self, depth: _Optional[int] = ..., quality: _Optional[_Mapping[str, QualityInterval]] = ...) -> None: ...

class QualityInterval(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class ProfileInfo(_message.Message):
    __slots__ = ("name", "tier", "depths")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEPTHS_FIELD_NUMBER: _ClassVar[int]
    name: str
    tier: str
    depths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., tier: _Optional[str] = ..., depths: _Optional[_Iterable[int]] = ...) -> None: ...

class CatalogueItem(_message.Message):
    __slots__ = ("id", "title", "categories", "attributes", "unavailable", "boost", "expires", "similar_item_ids")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    BOOST_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    SIMILAR_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    title: str
    categories: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.ScalarMap[str, float]
    unavailable: bool
    boost: float
    expires: int
    similar_item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., title: _Optional[str] = ..., categories: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Mapping[str, float]] = ..., unavailable: _Optional[bool] = ..., boost: _Optional[float] = ..., expires: _Optional[int] = ..., similar_item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("bundle", "items")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    items: _containers.RepeatedCompositeFieldContainer[CatalogueItem]
    def __init__(self, bundle: _Optional[str] = ..., items: _Optional[_Iterable[_Union[CatalogueItem, _Mapping]]] = ...) -> None: ...

class UpsertItemsResponse(_message.Message):
    __slots__ = ("added", "updated", "catalogue_version", "workers_behind")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    added: int
    updated: int
    catalogue_version: int
    workers_behind: int
    def __init__(self, added: _Optional[int] = ..., updated: _Optional[int] = ..., catalogue_version: _Optional[int] = ..., workers_behind: _Optional[int] = ...) -> None: ...

class RemoveItemsRequest(_message.Message):
    __slots__ = ("bundle", "item_ids")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bundle: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveItemsResponse(_message.Message):
    __slots__ = ("removed", "catalogue_version", "workers_behind")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_BEHIND_FIELD_NUMBER: _ClassVar[int]
    removed: int
    catalogue_version: int
    workers_behind: int
    def __init__(self, removed: _Optional[int] = ..., catalogue_version: _Optional[int] = ..., workers_behind: _Optional[int] = ...) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("bundle", "page_size", "page_token")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    page_size: int
    page_token: str
    def __init__(self, bundle: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token", "catalogue_version")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ListedItem]
    next_page_token: str
    catalogue_version: int
    def __init__(self, items: _Optional[_Iterable[_Union[ListedItem, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., catalogue_version: _Optional[int] = ...) -> None: ...

class ListedItem(_message.Message):
    __slots__ = ("item", "trained", "removed")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    item: CatalogueItem
    trained: bool
    removed: bool
    def __init__(self, item: _Optional[_Union[CatalogueItem, _Mapping]] = ..., trained: _Optional[bool] = ..., removed: _Optional[bool] = ...) -> None: ...
