"""Settings of a server: command line > environment (``FATHOM_*``) > file (YAML) > default.

``load_settings`` is the only place where they meet; the defaults live in ``ServerSettings`` and nowhere else.
"""

import difflib
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator

from fathom.connection import TOKEN_VARIABLE
from fathom.edge_profiles.document import read_document, short
from fathom.errors import ConfigError
from fathom.runs import VARIABLE as RUNS_VARIABLE

ENVIRONMENT_PREFIX = "FATHOM_"
# Names the settings file itself, so it is not a setting; nor is that of the runs, which no server adds to, nor that of
# the token that clients show.
FILE_VARIABLE = "FATHOM_CONFIG"
# What Kubernetes sets in every pod for each service; one that is called fathom or fathom-... meets our prefix.
_OF_A_SERVICE = re.compile(r"\w+_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
# The only sign by which its FATHOM_PORT and FATHOM_METRICS_PORT can be told from ours.
_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")

LAST_PORT = 65_535
_HOST_NAME = re.compile(r"(?=.{1,253}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)

log = logging.getLogger("fathom.serving")


def _or(text: str) -> dict[str, JsonValue]:
    """What holds without a value, for help and documentation."""
    return {"default_text": text}


class ServerSettings(BaseModel):
    """Everything about a server that is neither in the bundle nor in a device profile.

    The options of `fathom serve` and the table in docs/operating.md are made from the fields. The first sentence of a
    description is the help text; the page shows the whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Host name or address to listen on. For gRPC and metrics; `::` stands for every IPv6 address. Unix"
        " sockets are not supported.",
    )
    port: int = Field(
        default=50051,
        ge=0,
        le=LAST_PORT,
        description="gRPC port; 0 picks a free one. A port in use is an error and is never shared.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=LAST_PORT,
        description="HTTP port of /metrics and /healthz; 0 picks a free one. With several workers, worker i serves its"
        " own metrics on this port + i.",
        json_schema_extra=_or("off"),
    )
    metrics: Literal["off", "otlp"] = Field(
        default="off",
        description="The same metrics sent by OpenTelemetry (extra `otel`), with the port or without it. See"
        " [Metrics](#metrics).",
    )
    workers: int = Field(default=1, ge=1, le=256, description="Number of server processes sharing the port.")
    default_bundle: str | None = Field(
        default=None,
        min_length=1,
        description="Bundle for requests that name none. Without a default, such requests are refused. It remains the"
        " default until a restart, whatever else is published, and is still served when its folder disappears.",
        json_schema_extra=_or("the only one at startup"),
    )
    watch_s: float = Field(
        default=0,
        ge=0,
        le=86_400,
        description="Polling interval for new bundles, in seconds; 0 disables polling. New bundles are then loaded only"
        " when `Reload` is called.",
    )
    profile: str = Field(
        default="cloud",
        min_length=1,
        description="Device profile for requests that name none: a name, a tier or a YAML file.",
    )
    force: bool = Field(
        default=False,
        description="Serve a bundle even if it does not fit the profile: its memory, or the time that it allows.",
    )
    policy: Literal["auto", "certified", "rule", "deepest"] = Field(
        default="auto",
        description="How depths are chosen; `auto` is as certified, and the deepest depth where nothing is certified."
        " That holds for each profile's depths. `certified`: the same, but the server refuses to start if nothing is"
        " certified for its own profile; `rule`: by the profile's threshold of complexity, certified or not; `deepest`:"
        " always the profile's deepest depth. Deadlines and queues may demand a shallower one.",
    )
    feedback_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of certified requests run again at the deepest depth; 0 disables feedback. Only requests"
        " answered at a shallower depth, and only while the engine is idle. The same share of all requests is compared"
        " with the training data, to notice drift.",
    )
    feedback_alpha: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Probability that feedback ever raises a false alarm; the same for drift of features, and for"
        " `recertify`.",
    )
    recertify: Literal["auto", "off"] = Field(
        default="off",
        description="After an alarm, `auto` runs a share of the requests at every depth and certifies another routing"
        " once that evidence shows one; `off` stays at the deepest depth. See [Drift](#drift).",
    )
    record: str | None = Field(
        default=None,
        min_length=1,
        description="Folder in which routed requests are recorded, to certify from them. It holds the items of"
        " histories and answers, no users. See [Recording requests](#recording-requests).",
        json_schema_extra=_or("nothing is recorded"),
    )
    record_mb: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Size limit of that folder, in MB. The oldest recordings are removed first.",
    )
    history: str = Field(
        default="off",
        min_length=1,
        description="Where user histories are kept: off, memory, sqlite:PATH or redis://HOST:PORT/DB. `memory` ends"
        " with the process and allows one worker only; `sqlite:PATH` is one file shared by the workers of one machine;"
        " `redis://HOST:PORT/DB` (Redis 6.2 or Valkey, extra `redis`) is shared by servers. Put a password into"
        " `FATHOM_HISTORY`, so that no process list shows it.",
    )
    history_max_events: int = Field(
        default=1_000, ge=1, le=10_000, description="Events kept per user; the newest are kept."
    )
    history_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Age in days beyond which events are ignored and deleted.",
        json_schema_extra=_or("no limit"),
    )
    history_ahead_s: int = Field(
        default=86_400,
        ge=0,
        le=31_536_000,
        description="How far in the future an event may be dated, in seconds. Later events are refused.",
    )
    history_tombstone_days: int = Field(
        default=7,
        ge=1,
        le=3_650,
        description="Days to remember a deleted user. Late events from before the deletion are ignored until then.",
    )
    history_memory_mb: int = Field(
        default=256,
        ge=16,
        le=1_000_000,
        description="Memory limit of `--history memory`, in MB. Beyond it, the least recently seen users are dropped.",
    )
    catalogue: str = Field(
        default="off",
        min_length=1,
        description="Where changes of the catalogue are kept: off, memory, sqlite:PATH or redis://HOST:PORT/DB. As for"
        " `history`, but not in the same file. See [The catalogue](catalogue.md).",
    )
    rules: str | None = Field(
        default=None,
        min_length=1,
        description="YAML file of block lists and of the rules for requests that bring none. Read at startup and on"
        " `Reload`; `bundles: {NAME: ...}` in it says so for one bundle.",
        json_schema_extra=_or("no rules"),
    )
    experiments: Path | None = Field(
        default=None,
        description="YAML file of online experiments; read again when it changes. See [Experiments](experiments.md).",
        json_schema_extra=_or("no experiments"),
    )
    experiments_log: Path = Field(
        default=Path("experiments-log"),
        description="Folder of the experiments' logs and of how they stand, which servers may share. Needs the extra"
        " `train`.",
    )
    reuse_mb: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Memory per bundle for the prefix cache, in MB; 0 disables it. With the cache, a returning history"
        " costs only its new items. See [Returning users](#returning-users).",
        json_schema_extra=_or("1/16 of the profile's memory limit, at most 64; none below 16"),
    )
    threads: int | None = Field(
        default=None, ge=1, le=256, description="Threads per engine run.", json_schema_extra=_or("the profile's")
    )
    device: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="Where engines run; auto uses a GPU if there is one, tensorrt nothing but TensorRT."
        " See [NVIDIA GPUs](profiles.md#nvidia-gpus).",
    )
    tensorrt_cache: Path | None = Field(
        default=None,
        description="Folder where onnxruntime's TensorRT provider keeps the engines that it builds, with"
        " `device: tensorrt`. Whoever may write to it decides what is run.",
        json_schema_extra=_or("it builds them at every start"),
    )
    trust: tuple[Path, ...] = Field(
        default=(),
        description="Public key (PEM) of a trusted signer; repeatable. A bundle signed by none of them is refused at"
        ' startup, on reload and when polling (extra `sign`; [bundle-format.md](bundle-format.md), "Signatures").',
        json_schema_extra=_or("signatures are not checked"),
    )
    tls_cert: Path | None = Field(
        default=None,
        description="Certificate (PEM, with its chain) of this server, for TLS; read again when the file changes."
        " See [Security](security.md).",
        json_schema_extra=_or("no TLS"),
    )
    tls_key: Path | None = Field(
        default=None,
        description="Key (PEM, without a password) of that certificate.",
        json_schema_extra=_or("no TLS"),
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="Certificate authority (PEM) of clients, which must then show a certificate (mutual TLS).",
        json_schema_extra=_or("clients show none"),
    )
    access: Path | None = Field(
        default=None,
        description="YAML file that says who may call what: API keys, tokens, certificates, tenants, limits; read again"
        " when it changes. See [Security](security.md#the-access-file).",
        json_schema_extra=_or("everybody may do everything"),
    )
    insecure: bool = Field(
        default=False,
        description="Listen beyond this machine although TLS or access control is missing. Only where a proxy, a"
        " service mesh or a network that nobody else reaches takes their place.",
    )
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=LAST_PORT,
        description="Port of HTTP and JSON (extra `web`); 0 picks a free one. See [HTTP and JSON](#http-and-json).",
        json_schema_extra=_or("off"),
    )
    http_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins, as https://shop.example.org, whose pages may call the HTTP port; repeatable.",
        json_schema_extra=_or("none"),
    )
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=LAST_PORT,
        description="gRPC port of what only admins may call (Reload, DeleteUser, the catalogue, experiments), which is"
        " then not answered on `port`; 0 picks a free one.",
        json_schema_extra=_or("the same port"),
    )
    admin_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Host name or address of the admin port.",
    )
    audit: Path | None = Field(
        default=None,
        description="Folder of the audit log: who has changed, or tried to reach, what. See"
        " [The audit log](security.md#the-audit-log).",
        json_schema_extra=_or("no audit log"),
    )
    audit_mb: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Size limit of the audit log, in MB. The oldest files are removed first.",
    )
    max_queue: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Requests that may wait for the engine. The next one gets depth 0, or RESOURCE_EXHAUSTED where that"
        " is not allowed, unless its client has less than its fair share of requests and work waiting.",
    )
    transport: Literal["http2", "aio"] = Field(
        default="http2",
        description="How calls are read. `http2`: by Fathom itself, many at once; `aio`: by gRPC for Python, each as a"
        " task of its own. See [Transports](#transports).",
    )
    max_message_mb: int = Field(default=4, ge=1, le=1024, description="Largest message in either direction, in MB.")
    stream_in_flight: int = Field(
        default=64,
        ge=1,
        le=65536,
        description="Requests one stream may have waiting. The server reads no further until one is answered.",
    )
    drain_s: float = Field(default=20, ge=0, le=3600, description="Seconds to finish requests in flight after SIGTERM.")
    trace: Literal["off", "otlp"] = Field(
        default="off",
        description="Traces by OpenTelemetry (extra `otel`). See [Traces](#traces).",
    )
    log_format: Literal["json", "text"] = Field(
        default="json", description="Format of the log on stderr. `json` writes one object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )

    @field_validator("host", "admin_host")
    @classmethod
    def _name_or_address(cls, host: str) -> str:
        if not _HOST_NAME.fullmatch(host):
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise ValueError("give a host name or an address, without port, brackets or scheme") from None
        return host

    @field_validator("workers")
    @classmethod
    def _metrics_ports_exist(cls, workers: int, info: ValidationInfo) -> int:
        last = (info.data.get("metrics_port") or 0) + workers - 1
        if last > LAST_PORT:
            raise ValueError(
                f"worker {workers - 1} would show its metrics on port {last}; choose a lower --metrics-port"
            )
        return workers

    @field_validator(
        "port",
        "metrics_port",
        "http_port",
        "admin_port",
        "workers",
        "threads",
        "max_queue",
        "max_message_mb",
        mode="before",
    )
    @classmethod
    def _off_or_number(cls, value: object, info: ValidationInfo) -> object:
        # YAML reads a bare `off` as False; the command line and the environment give the word.
        if info.field_name in ("metrics_port", "admin_port", "http_port") and (value is False or value == "off"):
            return None
        if isinstance(value, bool):
            raise ValueError("must be a number")
        return value

    @field_validator("recertify", "trace", "metrics", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # as YAML reads a bare `off`

    @field_validator("trust", "http_origins", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        # The environment, and a short YAML file, name one.
        return (value,) if isinstance(value, str) else value


def load_settings(
    command_line: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> ServerSettings:
    """Merge the four sources of settings, each overriding the next: command line, environment, file, default.

    ``command_line``: option name to value, None where the option was not given. ``environment``: the process's own
    when None. ``file``: a YAML mapping; when None, the one that ``FATHOM_CONFIG`` names, if any.
    Raises ConfigError for an unknown key (with the nearest known one) or an impossible value, naming its source.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(FILE_VARIABLE)
    path = file or (Path(named) if named else None)
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for origin, given in (
        (str(path), _read_file(path) if path else {}),
        ("environment", _from_environment(environment)),
        ("command line", {key: value for key, value in (command_line or {}).items() if value is not None}),
    ):
        for key, value in given.items():
            _check_known(key, origin)
            values[key] = value
            sources[key] = _spelled(key, origin)
    try:
        return ServerSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{sources[key]}: {short(values[key])} is not possible: {reason}") from None


def _read_file(path: Path) -> dict[str, object]:
    document = read_document(path, kind="settings file", empty_ok=True)
    if document.problems:
        line, what = min(document.problems)
        raise ConfigError(f"{path}:{line}: {what}")
    return dict(document.values or {})


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    ours = {name: value for name, value in sorted(environment.items()) if name.startswith(ENVIRONMENT_PREFIX)}
    for other in (FILE_VARIABLE, RUNS_VARIABLE, TOKEN_VARIABLE):
        ours.pop(other, None)
    injected = [name for name, value in ours.items() if _is_of_a_service(name, value)]
    if injected:
        log.warning("ignored, set by Kubernetes for a service and no settings: %s", ", ".join(injected))
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value for name, value in ours.items() if name not in injected
    }


def _is_of_a_service(name: str, value: str) -> bool:
    return bool(_OF_A_SERVICE.fullmatch(name) or (name.endswith("_PORT") and _ADDRESS.fullmatch(value)))


def _check_known(key: str, origin: str) -> None:
    known = list(ServerSettings.model_fields)
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {_spelled(near[0], origin, bare=True)}?" if near else "fathom serve --help lists them"
    raise ConfigError(f"{_spelled(key[:64], origin)}: unknown setting; {advice}")


def _spelled(key: str, origin: str, *, bare: bool = False) -> str:
    """A key the way its source spells it: ``--max-queue``, ``FATHOM_MAX_QUEUE``, or ``server.yaml: max_queue``."""
    if origin == "environment":
        return ENVIRONMENT_PREFIX + key.upper()
    if origin == "command line":
        return "--" + key.replace("_", "-")
    return key if bare else f"{origin}: {key}"
