"""Who calls: roles, tenants, and what each of them may do."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from fathom.errors import InvalidRequestError, LimitError, PermissionDeniedError
from fathom.serving.access.bucket import Bucket, take_all


class Role(StrEnum):
    """What a caller may do. An admin may do everything."""

    RECOMMEND = "recommend"
    WRITE = "write"
    ADMIN = "admin"


#: The role that each method of fathom.v1.Recommender asks for.
ROLE_OF: Mapping[str, Role] = {
    **dict.fromkeys(("Recommend", "RecommendBatch", "RecommendStream", "GetBundle"), Role.RECOMMEND),
    **dict.fromkeys(("AppendEvents", "AppendEventStream", "ReportOutcomes"), Role.WRITE),
    **dict.fromkeys(("DeleteUser", "UpsertItems", "RemoveItems", "ListItems", "Reload"), Role.ADMIN),
    **dict.fromkeys(("ListExperiments", "ChangeExperiment"), Role.ADMIN),
}
#: What only an admin may call, on the admin port where there is one.
ADMIN_METHODS = tuple(method for method, role in ROLE_OF.items() if role is Role.ADMIN)

#: Whose work is counted by what they ask for; any other call is as much as a plain request.
COUNTED_BY_CONTENT = (
    *("Recommend", "RecommendBatch", "RecommendStream"),
    *("AppendEvents", "AppendEventStream", "ReportOutcomes"),
)

#: Begins the key of a tenant's user in the stores, and ends the tenant's name; no user id of a request begins with it.
_MARK = "\x1f"


@dataclass(frozen=True)
class Tenant:
    """A customer of the server, with bundles, users and a cache of its own.

    ``bundles``: the names that it may use, where ``*`` stands for any text; None: all. ``default_bundle``: for requests
    that name none; "" for the server's own.
    """

    name: str = ""
    bundles: tuple[str, ...] | None = None
    default_bundle: str = ""

    def may_use(self, bundle: str) -> bool:
        """Whether a bundle of this name exists for it."""
        return self.bundles is None or any(fnmatchcase(bundle, each) for each in self.bundles)

    def key_of(self, id: str, what: str = "user_id") -> str:
        """The key of one of its users, or of ``what`` else has an id, in the stores.

        Raises InvalidRequestError for an id that could be another tenant's.
        """
        if id.startswith(_MARK):
            raise InvalidRequestError(f"{what} begins with a control character; send another")
        return f"{_MARK}{self.name}{_MARK}{id}" if self.name else id


NO_TENANT = Tenant()


@dataclass(frozen=True, eq=False)
class Principal:
    """A caller whose identity was proved. ``name``: for logs and messages, as "key web".

    ``user``: the only one whom it may ask about and write about; None: anybody. ``buckets``: limits of its work.
    ``scope``: what is cached for one scope is never found by another. ``key``: which no other caller has; callers share
    the server by it.
    """

    name: str = "anybody"
    roles: frozenset[Role] = frozenset(Role)
    tenant: Tenant = NO_TENANT
    user: str | None = None
    buckets: tuple[Bucket, ...] = ()
    scope: bytes = b""
    key: str = ""

    def may(self, role: Role) -> bool:
        """Whether it has a role."""
        return role in self.roles or Role.ADMIN in self.roles

    def check(self, method: str) -> None:
        """Raise PermissionDeniedError where it may not call a method."""
        if not self.may(ROLE_OF[method]):
            raise PermissionDeniedError(f"{self.name} may not call {method}, which needs the role {ROLE_OF[method]}")

    def charge(self, work: float, now_s: float) -> None:
        """Count work, in plain requests; raises LimitError beyond its limit. ``now_s``: of ``time.monotonic``."""
        if self.buckets and (wait_s := take_all(self.buckets, work, now_s)):
            text = f"{self.name} has reached its limit; try again in {math.ceil(wait_s)} s"
            raise LimitError(text, retry_after_s=wait_s)

    def key_of(self, user_id: str) -> str:
        """The key of a user in the stores; raises PermissionDeniedError for one who is not its own."""
        if self.user is not None and user_id != self.user:
            raise PermissionDeniedError(f"{self.name} may only ask for and write about its own user")
        return self.tenant.key_of(user_id)


#: Of a server without access control: everybody may do everything.
ANYBODY_MAY = Principal()


def scope_of(tenant: str, user: str | None) -> bytes:
    """``Principal.scope`` of a tenant, and of a user whom a token is bound to: 16 bytes, or b"" without either."""
    if not tenant and user is None:
        return b""
    return hashlib.blake2b(f"{tenant}{_MARK}{user or ''}".encode(), digest_size=16, person=b"fathom-scope").digest()
