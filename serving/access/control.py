"""Access control: finds out who calls, and follows the access file while the server runs."""

import asyncio
import base64
import hashlib
import hmac
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fathom.errors import FathomError, UnauthenticatedError
from fathom.runtime.shares import Client
from fathom.serving.access.caller import Caller, client_of
from fathom.serving.access.keys import PREFIX, hash_of
from fathom.serving.access.known import Known, Limits
from fathom.serving.access.principal import ANYBODY_MAY, Principal
from fathom.serving.access.schema import read_access
from fathom.serving.access.tokens import Claims, issuer_of
from fathom.serving.files_watch import Stamp, stamp_of

HEADER, SCHEME = "authorization", "bearer"
LONGEST_TOKEN = 8_192
#: Verified tokens that are remembered: verifying a signature costs as much as a small answer.
MOST_TOKENS = 10_000
LOOK_EVERY_S = 1.0

log = logging.getLogger("fathom.serving")


class _Verified(NamedTuple):
    """A token that was verified: until when it holds (seconds since 1970), and what certificate it is bound to."""

    principal: Principal
    expires_s: float
    thumbprint: str | None


class AccessControl:
    """Belongs to one event loop. Without a ``path`` everybody may do everything.

    ``workers``: processes that share every limit equally. ``clock``: seconds since 1970.
    """

    def __init__(self, path: Path | None = None, *, workers: int = 1, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._limits = Limits(workers)
        self._known = Known.nobody()
        self._tokens: OrderedDict[str, _Verified] = OrderedDict()
        self._stamps: Sequence[Stamp] = ()

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything."""
        return self._path is None

    def load(self) -> None:
        """Read the access file and the key sets that it names; raises ConfigError, and then changes nothing."""
        if self._path is not None:
            self._adopt(*self._read(self._known))

    async def run(self) -> None:
        """Follow the files until cancelled; what cannot be used is logged, and what was known before still holds."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if await asyncio.to_thread(self.refresh_key_sets):
                    self._tokens.clear()
                if await asyncio.to_thread(self._stamped, self._known) != self._stamps:
                    # Read in a thread, and taken over between two calls.
                    self._adopt(*await asyncio.to_thread(self._read, self._known))
                    log.info("the access file or a key set was read again")
            except FathomError as error:
                self._stamps = await asyncio.to_thread(self._stamped, self._known)
                log.error("access control stays as it was: %s", error)
            except Exception:
                # The next look may succeed; if this ended, no key could be revoked any more.
                log.exception("access control stays as it was")

    def refresh_key_sets(self) -> bool:
        """Fetch the key sets of which it is time; whether any has other keys now. In any thread."""
        return sum(each.refresh() for each in self._known.issuers.values()) > 0

    def _read(self, before: Known) -> tuple[Known, Sequence[Stamp]]:
        """What the files say; key sets behind a URL are only fetched where they are new."""
        assert self._path is not None
        stamps = self._stamped(before)
        known = Known.of(read_access(self._path), self._path.parent, self._limits, before)
        # Key sets that were not followed before are from now on.
        return known, stamps if known.key_files == before.key_files else self._stamped(known)

    def _adopt(self, known: Known, stamps: Sequence[Stamp]) -> None:
        self._known, self._stamps = known, stamps
        self._tokens.clear()

    def caller_of(self, call: Any) -> Caller:
        """Who calls; raises UnauthenticatedError where that is not proved.

        ``call``: with ``invocation_metadata``, ``peer`` and ``auth_context``, as gRPC's contexts.
        """
        client = client_of(call)
        if self._path is None:
            return Caller(client)
        principal = self.identify(call)
        # Keys share the server, from wherever they are used.
        return Caller(Client(principal.key, client.connection, client.name), principal)

    def identify(self, call: Any) -> Principal:
        """Who calls; raises UnauthenticatedError where that is not proved."""
        if self._path is None:
            return ANYBODY_MAY
        given = [value for key, value in call.invocation_metadata() or () if key == HEADER]
        if len(given) > 1:
            raise UnauthenticatedError(f"the call has {len(given)} authorization headers; send one")
        if given:
            return self.of_header(given[0], lambda: thumbprint_of(call.auth_context()))
        if self._known.certificates:
            for name in names_of(call.auth_context()):
                if (principal := self._known.certificates.get(name)) is not None:
                    return principal
        raise UnauthenticatedError("send an API key or a token, as `authorization: Bearer ...`")

    def of_header(self, header: object, thumbprint: Callable[[], str | None] = lambda: None) -> Principal:
        """Whom an authorization header names; ``thumbprint``: of the certificate that the caller has shown."""
        scheme, _, token = header.partition(" ") if isinstance(header, str) else ("", "", "")
        if scheme.lower() != SCHEME or not token or len(token) > LONGEST_TOKEN:
            raise UnauthenticatedError("the authorization header is not `Bearer` and a key or a token")
        if token.startswith(PREFIX):
            return self._of_key(token)
        return self._of_token(token, thumbprint)

    def _of_key(self, key: str) -> Principal:
        found = self._known.keys.get(hash_of(key))
        if found is None or found.expires_s <= self._clock():
            raise UnauthenticatedError("the key is not accepted")
        return found.principal

    def _of_token(self, token: str, thumbprint: Callable[[], str | None]) -> Principal:
        verified = self._tokens.get(token)
        if verified is None:
            verified = self._verify(token)
        else:
            self._tokens.move_to_end(token)
        if verified.expires_s <= self._clock():
            self._tokens.pop(token, None)
            raise UnauthenticatedError("the token has expired")
        if verified.thumbprint is not None and not hmac.compare_digest(verified.thumbprint, thumbprint() or ""):
            raise UnauthenticatedError("the token is bound to another client's certificate")
        return verified.principal

    def _verify(self, token: str) -> _Verified:
        verifier = self._known.issuers.get(issuer_of(token) or "") if self._known.issuers else None
        if verifier is None:
            raise UnauthenticatedError("the token is not accepted")
        claims: Claims = verifier.verify(token)
        if claims.token_id in self._known.revoked:
            raise UnauthenticatedError("the token is not accepted")
        principal = self._known.principal_of(verifier.part, claims, self._limits)
        verified = _Verified(principal, claims.expires_s, claims.thumbprint)
        self._tokens[token] = verified
        if len(self._tokens) > MOST_TOKENS:
            self._tokens.popitem(last=False)
        return verified

    def _stamped(self, known: Known) -> Sequence[Stamp]:
        assert self._path is not None
        return [stamp_of(path) for path in (self._path, *known.key_files)]


def names_of(auth_context: Mapping[str, Sequence[bytes]]) -> Sequence[str]:
    """The names that a client's certificate is for; its common name only where it has no others (RFC 6125, 6.4.4)."""
    names = auth_context.get("x509_subject_alternative_name") or auth_context.get("x509_common_name") or ()
    return [name.decode("utf-8", "replace") for name in names]


def thumbprint_of(auth_context: Mapping[str, Sequence[bytes]]) -> str | None:
    """The SHA-256 of a client's certificate as tokens name it (RFC 8705, 3.1); None without one."""
    pems = tuple(auth_context.get("x509_pem_cert") or ())
    if not pems:
        return None
    der = ssl.PEM_cert_to_DER_cert(pems[0].decode())
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


OPEN = AccessControl()
