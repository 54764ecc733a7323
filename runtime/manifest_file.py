"""Reads ``manifest.json`` of a bundle's folder, and checks it against itself."""

from pathlib import Path

from pydantic import ValidationError

from fathom.errors import BundleEditedError, BundleMissingFileError, BundleSchemaError, brief
from fathom.files import parse_json
from fathom.runtime.bundle_folder import REBUILD, read_regular
from fathom.runtime.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest, version_of
from fathom.runtime.manifest_rules import first_broken_rule
from fathom.runtime.signature import Trust

#: Bytes that a manifest can have at most.
_LARGEST_MANIFEST = 16 << 20


def read_manifest(path: Path, trust: Trust | None = None) -> Manifest:
    """Read and check ``manifest.json`` of a bundle folder, without opening any other file but its signature.

    ``trust``: the keys of which one must have signed it. Raises BundleMissingFileError, BundleSchemaError,
    BundleEditedError, BundleSignatureError or BundleError.
    """
    data = read_manifest_bytes(path)
    if trust is not None:
        trust.check(path, data)
    return parse_manifest(path / MANIFEST_NAME, data)


def read_manifest_bytes(path: Path) -> bytes:
    """``manifest.json`` of a bundle folder, unchecked; raises BundleMissingFileError or BundleError."""
    try:
        return read_regular(path / MANIFEST_NAME, _LARGEST_MANIFEST)
    except BundleMissingFileError:
        raise BundleMissingFileError(f"{path}: no bundle here: {MANIFEST_NAME} is missing") from None


def parse_manifest(file: Path, data: bytes) -> Manifest:
    """The manifest in these bytes of a file, checked; raises BundleSchemaError or BundleEditedError."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise BundleSchemaError(f"{file}: not a manifest: {brief(error, 100)}; {REBUILD}") from None
    schema = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise BundleSchemaError(f"{file}: not a manifest: it has no schema_version; {REBUILD}")
    if schema > SCHEMA_VERSION:
        raise BundleSchemaError(
            f"{file}: written by a newer Fathom (schema_version {brief(schema)}, this one reads {SCHEMA_VERSION}); "
            "upgrade Fathom"
        )
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = brief(".".join(map(str, first["loc"])))
        raise BundleSchemaError(f"{file}: not a manifest: {where}: {brief(first['msg'], 120)}; {REBUILD}") from None
    if (words := first_broken_rule(manifest)) is not None:
        raise BundleSchemaError(f"{file}: not a manifest: {words}; {REBUILD}")
    if manifest.version != (version := version_of(value)):
        raise BundleEditedError(
            f"{file}: version is '{brief(manifest.version)}' but the manifest makes '{version}'; {REBUILD}"
        )
    return manifest
