"""Which settings of a server a replica has: all but those of ports and processes, which Ray Serve brings."""

from collections.abc import Mapping

from fathom.errors import ConfigError
from fathom.serving.config import ServerSettings, load_settings

#: Settings that Ray Serve takes the place of, and what to say instead.
REPLACED = {
    **dict.fromkeys(("host", "port", "transport", "max_message_mb"), "the proxy has the port: say grpc_options"),
    **dict.fromkeys(("http_port", "http_origins", "admin_port", "admin_host"), "Ray Serve has one port, for gRPC"),
    **dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"), "its proxy speaks no TLS; put one that does before it"),
    "metrics_port": "Ray has metrics of its own; metrics: otlp sends Fathom's",
    "workers": "say num_replicas",
    "drain_s": "say graceful_shutdown_timeout_s",
    "log_format": "say logging_config",
    "log_level": "say logging_config",
}


def replica_settings(given: Mapping[str, object], replicas: int) -> ServerSettings:
    """The settings of one of several replicas; raises ConfigError for what cannot be.

    ``replicas``: by which limits of callers are divided. ``FATHOM_*`` of the environment holds where nothing is given.
    """
    for name in given:
        if name in REPLACED:
            raise ConfigError(f"{name}: not with Ray Serve: {REPLACED[name]}")
    settings = load_settings(given)
    for name in ("history", "catalogue"):
        if getattr(settings, name) == "memory":
            raise ConfigError(f"{name}: replicas do not share memory; choose sqlite:PATH or redis://HOST:PORT/DB")
    if settings.access is None and not settings.insecure:
        raise ConfigError(
            "the proxy of Ray Serve listens on all addresses: without `access`, whoever reaches it could read and"
            " delete what is known of users; see docs/security.md, or say insecure: true"
        )
    return settings.model_copy(update={"workers": replicas})
