"""How a program reaches a server: its name, TLS, and metadata for every call.

Loads gRPC only when a channel is opened, because the command line needs the options without it.
"""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fathom.errors import ConfigError, brief

if TYPE_CHECKING:
    import grpc

DEFAULT_TARGET = "127.0.0.1:50051"
#: The environment variable of the API key or token that commands show, so that no process list holds it.
TOKEN_VARIABLE = "FATHOM_TOKEN"
#: A file in PEM format, or what is in it.
Pem = str | Path | bytes

#: Other ways to name a server, which gRPC understands by itself.
SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_Options = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Connection:
    """Opens channels to one server; raises ConfigError for what cannot be one.

    ``target``: ``host:port``, or any name that gRPC knows. ``tls``: False, True for the certificate authorities that
    come with gRPC, or the PEM of your own. ``certificate`` and ``key``: the PEMs that this side shows of itself, where
    the server wants to see one. ``metadata``: sent with every call, as ``{"authorization": "Bearer ..."}``.
    """

    target: str = DEFAULT_TARGET
    tls: bool | Pem = False
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    _pems: tuple[bytes | None, bytes | None, bytes | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_target(self.target)
        if not isinstance(self.metadata, Mapping):
            # Not repeated, here as below: it may well be a secret.
            raise ConfigError(f"metadata is a {type(self.metadata).__name__}; give a mapping of texts")
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a client's certificate and its key belong together; give both or neither")
        if self.certificate is not None and self.tls is False:
            raise ConfigError("a client's certificate is only shown over TLS; ask for tls, too")
        # Read now, so that whoever opens a channel later need not expect this to fail.
        roots = None if isinstance(self.tls, bool) else _pem(self.tls, "CERTIFICATE")
        key = None if self.key is None else _pem(self.key, "PRIVATE KEY")
        certificate = None if self.certificate is None else _pem(self.certificate, "CERTIFICATE")
        object.__setattr__(self, "_pems", (roots, key, certificate))
        for name, value in self.metadata.items():
            check_metadata(name, value)
        object.__setattr__(self, "metadata", {name.lower(): value for name, value in self.metadata.items()})

    @classmethod
    def from_options(
        cls, target: str, *, tls: bool, ca: Path | None, cert: Path | None, key: Path | None, metadata: Sequence[str]
    ) -> Self:
        """What the options of a command say: ``ca`` and ``cert`` imply ``tls``; ``metadata`` are texts key=value.

        The token of FATHOM_TOKEN is sent unless ``metadata`` has an authorization of its own.
        """
        if not all("=" in each for each in metadata):
            raise ConfigError("--metadata needs a key and a value, as --metadata key=value")
        pairs = dict(each.split("=", 1) for each in metadata)
        token = os.environ.get(TOKEN_VARIABLE)
        if token and "authorization" not in map(str.lower, pairs):
            pairs["authorization"] = f"Bearer {token}"
        return cls(target, ca or (tls or cert is not None), cert, key, pairs)

    @property
    def authority(self) -> bytes | None:
        """The PEM of whom this side trusts; None for the usual ones."""
        return self._pems[0]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The metadata as gRPC's calls take it."""
        return tuple(self.metadata.items())

    def channel(self, options: _Options = ()) -> "grpc.Channel":
        """A new channel; nothing is sent yet."""
        import grpc

        channel: grpc.Channel = self._opened(grpc, options)
        return channel

    def aio_channel(self, options: _Options = ()) -> "grpc.aio.Channel":
        """The same for asyncio."""
        import grpc

        channel: grpc.aio.Channel = self._opened(grpc.aio, options)
        return channel

    def to(self, target: str) -> Self:
        """The same connection to another server."""
        _check_target(target)
        other = copy(self)
        object.__setattr__(other, "target", target)
        return other

    def _opened(self, library: Any, options: _Options) -> Any:
        import grpc

        if self.tls is False:
            return library.insecure_channel(self.target, options=options)
        return library.secure_channel(self.target, grpc.ssl_channel_credentials(*self._pems), options=options)


def _check_target(target: object) -> None:
    if not isinstance(target, str) or not target.isprintable():
        raise ConfigError(f"target is {brief(target)}; give host:port, as {DEFAULT_TARGET}")
    if target.startswith(SCHEMES):
        return
    host, _, port = target.rpartition(":")
    if not port.isascii() or not port.isdecimal() or not 1 <= int(port[:6]) <= 65_535:
        raise ConfigError(f"target {brief(target)!r} has no port from 1 to 65535; give host:port, as {DEFAULT_TARGET}")
    if not re.fullmatch(r"[\w.-]+|\[.*\]", host, re.ASCII) or (host.startswith("[") and not _is_ipv6(host[1:-1])):
        raise ConfigError(f"target {brief(target)!r} is not host:port, as {DEFAULT_TARGET} or [::1]:50051")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def check_metadata(key: str, value: object) -> None:
    """Raise ConfigError for what cannot be sent with a call."""
    wrong = not isinstance(key, str) or not _KEY.fullmatch(key.lower())
    if wrong or key.lower().startswith("grpc-") or key.lower().endswith("-bin"):
        raise ConfigError(
            f"metadata has the key {brief(key)!r}; keys are letters, digits and -_. and neither grpc-... nor ...-bin"
        )
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        # Not repeated here: it may well be a secret.
        raise ConfigError(f"the value of {brief(key)} in metadata is not printable ASCII text")


def _pem(given: Pem, what: str) -> bytes:
    """The bytes of a PEM; raises ConfigError when it cannot be read or does not hold what is wanted."""
    name = "PEM"
    if not isinstance(given, str | Path | bytes):
        raise ConfigError(
            f"a PEM cannot be of type {type(given).__name__}; give the path of a file, or its contents as bytes"
        )
    if isinstance(given, bytes):
        data = given
    else:
        name = str(given)
        try:
            if not Path(given).is_file():
                raise ConfigError(f"{brief(name, 160)}: no such file; give a PEM file")
            data = Path(given).read_bytes()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{brief(name, 160)}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if not re.search(rb"-----BEGIN [A-Z ]*" + what.encode() + rb"-----", data):
        raise ConfigError(f"{brief(name, 160)}: it holds no {what.lower()} in PEM format")
    return data
