"""TLS of the server's ports; certificates are read again when their files change."""

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import grpc

from fathom.errors import ConfigError
from fathom.serving.config import ServerSettings
from fathom.serving.files_watch import Stamp, stamp_of

log = logging.getLogger("fathom.serving")


class Certificates:
    """A certificate, its key, and whose certificates clients must show (None: they need none); PEM files."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._stamps: Sequence[Stamp] = ()
        # gRPC asks from threads of its own.
        self._reading = threading.Lock()

    @classmethod
    def of(cls, settings: ServerSettings) -> Self | None:
        """Those that the settings name, None without TLS; raises ConfigError where one of them is missing."""
        if settings.tls_cert is None and settings.tls_key is None:
            if settings.tls_client_ca is not None:
                raise ConfigError("clients show certificates over TLS only; give --tls-cert and --tls-key, too")
            return None
        if settings.tls_cert is None or settings.tls_key is None:
            raise ConfigError("a certificate and its key belong together; give --tls-cert and --tls-key, or neither")
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def for_grpc(self) -> grpc.ServerCredentials:
        """Credentials of a port of gRPC's, which follow the files; raises ConfigError where they cannot be used."""
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._newer,  # type: ignore[arg-type]  # None is allowed: no change
            require_client_authentication=self._client_ca is not None,
        )

    def for_http(self, *, asks_clients: bool = False, protocols: Sequence[str] = ()) -> ssl.SSLContext:
        """The context of a port of our own; raises ConfigError.

        ``asks_clients``: for certificates, where gRPC does. ``protocols``: what is spoken on it, as ALPN names it.
        """
        return _Following(self, partial(self.new_context, asks_clients=asks_clients, protocols=protocols)).context

    def new_context(self, *, asks_clients: bool, protocols: Sequence[str] = ()) -> ssl.SSLContext:
        """A context from the files as they are now; raises ConfigError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if protocols:
            context.set_alpn_protocols(list(protocols))
        self._load(context)
        if asks_clients and self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        return context

    def stamps(self) -> Sequence[Stamp]:
        """What the files are now."""
        return [stamp_of(path) for path in (self._certificate, self._key, self._client_ca) if path is not None]

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What the next client gets, None for the same as the last."""
        with self._reading:
            if self.stamps() == self._stamps:
                return None
            try:
                found = self._read()
            except ConfigError as error:
                self._stamps = self.stamps()
                log.error("the certificate stays: %s", error)
                return None
        log.info("the certificate has changed; new connections get the new one")
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._stamps = self.stamps()
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        roots = None if self._client_ca is None else _pem(self._client_ca)
        return grpc.ssl_server_certificate_configuration([(_pem(self._key), _pem(self._certificate))], roots)

    def _load(self, context: ssl.SSLContext) -> None:
        """Give a context the certificate, which shows whether it and its key belong together."""
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
            if self._client_ca is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self._client_ca)
        except ssl.SSLError as error:
            reason = (error.reason or "not PEM").replace("_", " ").lower()
            raise ConfigError(
                f"{self._certificate} and {self._key} are no certificate and its key"
                f"{f', or {self._client_ca} no certificate of an authority' if self._client_ca else ''} ({reason})"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {self._certificate} and {self._key}: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password, which only the server may read")


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


class _Following:
    """A context for as long as a port is open, in which each connection gets what the files say then."""

    def __init__(self, certificates: Certificates, make: Callable[[], ssl.SSLContext]) -> None:
        self._certificates = certificates
        self._make = make
        self._stamps = certificates.stamps()
        self._newest = self.context = self._make()
        # OpenSSL calls it for clients that name no server, too.
        self.context.sni_callback = self._exchange

    def _exchange(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if (now := self._certificates.stamps()) != self._stamps:
            self._stamps = now
            try:
                self._newest = self._make()
                log.info("the certificate has changed; new connections get the new one")
            except ConfigError as error:
                log.error("the certificate stays: %s", error)
        connection.context = self._newest
