"""The access file: a YAML file that says who may call what. docs/security.md describes it."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fathom.edge_profiles.document import Document, read_document
from fathom.errors import ConfigError
from fathom.serving.access.principal import Role

#: Only those whose verification needs no secret: with a shared one, or none, whoever verifies could sign.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Roles = Annotated[tuple[Role, ...], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Limited(_Part):
    #: Plain requests a second, and how many at once; the same number where only the first is given.
    rate: float | None = Field(default=None, gt=0, le=1e9)
    burst: float | None = Field(default=None, gt=0, le=1e9)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("burst needs a rate")
        return self


class TenantPart(_Limited):
    """A tenant's bundles, and the limit of all its callers together."""

    bundles: tuple[str, ...] | None = None
    default_bundle: str = ""


class _Caller(_Limited):
    roles: Roles
    tenant: str = ""


class KeyPart(_Caller):
    """An API key, by its hash."""

    name: Name
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires: date | None = None


class CertificatePart(_Caller):
    """A client's certificate, by a DNS or URI name that it is for, else by its common name."""

    name: str = Field(min_length=1, max_length=253)


class IssuerPart(_Limited):
    """An issuer of JSON Web Tokens; the limit is that of each subject."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks: str = Field(min_length=1)
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    roles: tuple[Role, ...] = ()
    roles_claim: str = "roles"
    tenant: str = ""
    tenant_claim: str | None = None
    user_claim: str | None = None

    @field_validator("jwks")
    @classmethod
    def _secure(cls, jwks: str) -> str:
        local = jwks.startswith(("http://127.0.0.1", "http://localhost", "http://[::1]"))
        if "://" in jwks and not jwks.startswith("https://") and not local:
            raise ValueError("keys are fetched over https only; give an https URL, or a file")
        return jwks

    @model_validator(mode="after")
    def _one_tenant(self) -> Self:
        if self.tenant and self.tenant_claim:
            raise ValueError("give tenant or tenant_claim, not both")
        return self


class AccessFile(_Part):
    """All of it. ``revoked``: ids (`jti`) of tokens that are no longer accepted."""

    tenants: dict[Name, TenantPart] = {}
    keys: tuple[KeyPart, ...] = ()
    jwt: tuple[IssuerPart, ...] = ()
    certificates: tuple[CertificatePart, ...] = ()
    revoked: frozenset[str] = frozenset()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = [*(k.tenant for k in self.keys), *(i.tenant for i in self.jwt), *(c.tenant for c in self.certificates)]
        for tenant in named:
            if tenant and tenant not in self.tenants:
                raise ValueError(f"tenant {tenant!r} is not among tenants")
        for kind, found in (
            ("keys have the name", [each.name for each in self.keys]),
            ("keys have the hash", [each.sha256 for each in self.keys]),
            ("certificates have the name", [each.name for each in self.certificates]),
            ("parts of jwt have the issuer", [each.issuer for each in self.jwt]),
        ):
            twice = {each for each in found if found.count(each) > 1}
            if twice:
                raise ValueError(f"two {kind} {min(twice)}")
        return self


def read_access(path: Path) -> AccessFile:
    """The file's content; raises ConfigError, in one line that repeats no value, for whatever is wrong with it."""
    document = read_document(path, kind="access file")
    if document.problems:
        line, what = min(document.problems)
        raise ConfigError(f"{path}:{line}: {what}")
    try:
        # Lists of YAML are tuples here, and its texts roles.
        found = AccessFile.model_validate(document.values or {})
    except ValidationError as error:
        raise ConfigError(_worded(path, document, error)) from None
    if not (found.keys or found.jwt or found.certificates):
        raise ConfigError(f"{path}: nobody may call; add a key with `fathom key NAME --add {path}`")
    return found


def _worded(path: Path, document: Document, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "unknown key"
    line = document.line(tuple(first["loc"]))
    return f"{path}:{line}: {where}: {reason}" if where else f"{path}: {reason}"
