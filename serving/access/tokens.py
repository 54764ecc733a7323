"""JSON Web Tokens of one issuer: RFC 7519, with the issuer's keys as a JSON Web Key Set (RFC 7517)."""

import json
import logging
import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from fathom.errors import ConfigError, UnauthenticatedError, optional
from fathom.serving.access.principal import Role
from fathom.serving.access.schema import IssuerPart

#: Clocks may differ by so many seconds.
LEEWAY_S = 30
FETCH_S = 5.0
LARGEST_SET = 1 << 20
#: Kinds of keys with a public half; a shared secret in a key set is not used.
PUBLIC = ("RSA", "EC", "OKP")
#: How often key sets are fetched again: regularly, and where a key or the whole set is missing.
FETCH_EVERY_S, FETCH_SOON_S = 300.0, 30.0

log = logging.getLogger("fathom.serving")


@dataclass(frozen=True)
class Claims:
    """What a verified token says. ``expires_s``: since 1970. ``thumbprint``: of the certificate it is bound to."""

    subject: str
    roles: frozenset[Role]
    tenant: str
    user: str | None
    expires_s: float
    token_id: str | None
    thumbprint: str | None


class TokenVerifier:
    """Verifies the tokens of one issuer. ``folder``: where a relative path of its key set begins."""

    def __init__(self, part: IssuerPart, folder: Path) -> None:
        self.part = part
        self._jwt: Any = optional("jwt", "jwt")
        optional("cryptography", "jwt")
        self._folder = folder
        self._keys: Mapping[str | None, Any] = {}
        self._document = b""
        self._fetched_s = -math.inf
        #: Whether a token has named a key that is not in the set: the issuer may have a new one.
        self.lacks_key = False

    @property
    def is_remote(self) -> bool:
        """Whether the key set is fetched from a URL, and so has to be fetched again now and then."""
        return "://" in self.part.jwks

    def refresh(self) -> bool:
        """Fetch the key set again if it is time, which may take long; whether there are other keys now.

        However many tokens name unknown keys, a set is fetched once in FETCH_SOON_S.
        """
        since_s = monotonic() - self._fetched_s
        if not self.is_remote or since_s <= (FETCH_SOON_S if self.lacks_key else FETCH_EVERY_S):
            return False
        before = self._document
        try:
            self.load()
        except ConfigError as error:
            log.error("%s; it is tried again", error)
            self.lacks_key = True
        return self._document != before

    def load(self) -> None:
        """Read the key set, which may take long; raises ConfigError, and then keeps the one before."""
        self._fetched_s = monotonic()
        try:
            document = self._fetched() if self.is_remote else (self._folder / self.part.jwks).read_bytes()
            found = json.loads(document)
            keys = [self._jwt.PyJWK(each) for each in found["keys"] if each.get("kty") in PUBLIC]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, self._jwt.PyJWTError) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
            raise ConfigError(f"jwt: {self.part.jwks} is no set of keys that can be used: {reason}") from None
        if not keys:
            raise ConfigError(f"jwt: {self.part.jwks} holds no public key")
        self._keys, self._document, self.lacks_key = {key.key_id: key for key in keys}, document, False

    def verify(self, token: str) -> Claims:
        """What a token says; raises UnauthenticatedError unless it is the issuer's, for us, and valid now."""
        part, jwt = self.part, self._jwt
        try:
            key = self._key_of(jwt.get_unverified_header(token).get("kid"))
            said = jwt.decode(
                token,
                key,
                algorithms=list(part.algorithms),
                audience=part.audience,
                issuer=part.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise UnauthenticatedError("the token is not accepted") from None
        return self._claims(said)

    def _claims(self, said: Mapping[str, Any]) -> Claims:
        part = self.part
        bound = said.get("cnf")
        claims = Claims(
            subject=str(said["sub"]),
            roles=_roles(said.get(part.roles_claim)) | frozenset(part.roles),
            tenant=_text(said, part.tenant_claim) if part.tenant_claim else part.tenant,
            user=_text(said, part.user_claim) if part.user_claim else None,
            expires_s=float(said["exp"]) + LEEWAY_S,
            token_id=said.get("jti"),
            thumbprint=bound.get("x5t#S256") if isinstance(bound, dict) else None,
        )
        if bound is not None and not isinstance(claims.thumbprint, str):
            raise UnauthenticatedError("the token is bound in a way that is not known here")
        return claims

    def _key_of(self, key_id: object) -> Any:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if not isinstance(key_id, str) or key_id not in self._keys:
            self.lacks_key = True
            raise UnauthenticatedError("the token is signed by a key that is not known")
        return self._keys[key_id]

    def _fetched(self) -> bytes:
        request = urllib.request.Request(self.part.jwks, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=FETCH_S) as answer:
            body: bytes = answer.read(LARGEST_SET + 1)
        if len(body) > LARGEST_SET:
            raise ValueError("too large")
        return body


def verifier_of(part: IssuerPart, folder: Path, before: TokenVerifier | None) -> TokenVerifier:
    """The verifier of an issuer, or the one there was, if it is still the same; see ``Known.of``."""
    if before is not None and before.part == part and before.is_remote:
        return before
    verifier = TokenVerifier(part, folder)
    try:
        verifier.load()
    except ConfigError as error:
        if not verifier.is_remote:
            raise
        log.error("%s; it is tried again", error)
        verifier.lacks_key = True
    return verifier


def issuer_of(token: str) -> str | None:
    """Who says to have issued a token, before anything of it is verified; None where it is no token."""
    jwt: Any = optional("jwt", "jwt")
    try:
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return issuer if isinstance(issuer, str) else None


def _roles(claim: object) -> frozenset[Role]:
    """Of a list of texts, or of one text with spaces between; what is no role of ours means nothing here."""
    named = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(role for role in Role if role in named)


def _text(said: Mapping[str, Any], claim: str) -> str:
    value = said.get(claim)
    if not isinstance(value, str) or not value:
        raise UnauthenticatedError(f"the token has no {claim}")
    return value
