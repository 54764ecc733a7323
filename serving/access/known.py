"""Everybody whom an access file names, ready to be looked up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from fathom.errors import UnauthenticatedError
from fathom.serving.access.bucket import Bucket
from fathom.serving.access.principal import NO_TENANT, Principal, Tenant, scope_of
from fathom.serving.access.schema import AccessFile, CertificatePart, IssuerPart, KeyPart
from fathom.serving.access.tokens import Claims, TokenVerifier, verifier_of

#: Subjects of tokens whose limits are remembered.
MOST_SUBJECTS = 100_000


class Limits:
    """The buckets of everybody who has a limit; they outlive a change of the file that leaves them as they are."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._buckets: dict[tuple[str, float, float], Bucket] = {}

    def of(self, name: str, rate: float | None, burst: float | None) -> tuple[Bucket, ...]:
        """One worker's part of a limit, in plain requests a second and at once; () without one."""
        if rate is None:
            return ()
        key = name, rate / self._workers, (rate if burst is None else burst) / self._workers
        if key not in self._buckets:
            if len(self._buckets) >= MOST_SUBJECTS:
                self._buckets.pop(next(iter(self._buckets)))
            self._buckets[key] = Bucket(*key[1:])
        return (self._buckets[key],)


class KnownKey(NamedTuple):
    """Whose a key is, and until when, in seconds since 1970."""

    principal: Principal
    expires_s: float


class _TenantLimits(NamedTuple):
    tenant: Tenant
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Known:
    """``keys`` by hash, ``certificates`` by the name that they are for, ``issuers`` of tokens by name."""

    tenants: Mapping[str, _TenantLimits] = field(default_factory=dict)
    keys: Mapping[str, KnownKey] = field(default_factory=dict)
    certificates: Mapping[str, Principal] = field(default_factory=dict)
    issuers: Mapping[str, TokenVerifier] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    key_files: Sequence[Path] = ()

    @classmethod
    def nobody(cls) -> Self:
        """Before a file has been read."""
        return cls()

    @classmethod
    def of(cls, file: AccessFile, folder: Path, limits: Limits, before: "Known | None" = None) -> Self:
        """Whom a file names; raises ConfigError for a key set in a file that cannot be read.

        ``folder``: where the file lies. ``before``: who was known, with fetched key sets that go on being used. A set
        that cannot be fetched keeps nobody else out: nothing is known of its issuer yet.
        """
        tenants = {"": _TenantLimits(NO_TENANT, ())}
        for name, part in file.tenants.items():
            tenant = Tenant(name, part.bundles, part.default_bundle)
            tenants[name] = _TenantLimits(tenant, limits.of(f"tenant {name}", part.rate, part.burst))
        old = {} if before is None else before.issuers
        issuers = {part.issuer: verifier_of(part, folder, old.get(part.issuer)) for part in file.jwt}

        def principal(name: str, part: KeyPart | CertificatePart) -> Principal:
            tenant, shared = tenants[part.tenant]
            own = limits.of(name, part.rate, part.burst)
            roles, scope = frozenset(part.roles), scope_of(part.tenant, None)
            return Principal(name, roles, tenant, None, (*own, *shared), scope, name)

        return cls(
            tenants,
            {each.sha256: KnownKey(principal(f"key {each.name}", each), _end_of(each.expires)) for each in file.keys},
            {each.name: principal(f"certificate {each.name}", each) for each in file.certificates},
            issuers,
            file.revoked,
            [folder / part.jwks for part in file.jwt if "://" not in part.jwks],
        )

    def principal_of(self, part: IssuerPart, claims: Claims, limits: Limits) -> Principal:
        """Whom a verified token is about; raises UnauthenticatedError where its tenant is not known."""
        if claims.tenant not in self.tenants:
            raise UnauthenticatedError("the token is for a tenant that is not known")
        tenant, shared = self.tenants[claims.tenant]
        # Of a token that is a user's, the subject is the user.
        name = f"a user of {part.issuer}" if claims.user is not None else f"subject {claims.subject} of {part.issuer}"
        key = f"{part.issuer} {claims.tenant} {claims.subject}"
        own = limits.of(key, part.rate, part.burst)
        scope = scope_of(claims.tenant, claims.user)
        return Principal(name, claims.roles, tenant, claims.user, (*own, *shared), scope, key)


def _end_of(day: date | None) -> float:
    """When a day has passed by UTC, in seconds since 1970; never without one."""
    return math.inf if day is None else datetime.combine(day + timedelta(days=1), time(), UTC).timestamp()
