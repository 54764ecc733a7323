"""The version of a bundle follows from its whole manifest, and a depth's digest from what the depth runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.runtime.manifest import SCHEMA_VERSION, Manifest, depth_digest, sealed, version_of
from fathom.runtime.manifest_file import read_manifest


@pytest.fixture
def value(synthetic_bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle, as it is written."""
    found: dict[str, Any] = json.loads((synthetic_bundle / "manifest.json").read_text())
    return found


def keys(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value that is neither a list nor an object."""
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in keys(inner, (*path, key))]
    if isinstance(value, list):
        return [each for key, inner in enumerate(value) for each in keys(inner, (*path, key))]
    return [path]


def test_every_key_but_created_is_in_the_version_and_their_order_is_not(value: dict[str, Any]) -> None:
    assert version_of(value) == value["version"]
    assert version_of(dict(reversed(value.items()))) == value["version"]
    for path in keys(value):
        changed = json.loads(json.dumps(value))
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = "other"
        if path[0] == "schema_version":
            continue
        same = path[0] in ("version", "created")
        assert (version_of(changed) == value["version"]) == same, path


def test_before_schema_5_the_version_follows_from_the_files_alone(value: dict[str, Any]) -> None:
    older = value | {"schema_version": 4}
    assert version_of(older | {"name": "other"}) == version_of(older) != value["version"]
    entry = {"bytes": 1, "sha256": "a" * 64}
    assert version_of(older | {"files": {"x": entry}}) != version_of(older)


def test_a_manifest_is_sealed_in_the_newest_schema_unless_it_has_an_older_certificate(synthetic_bundle: Path) -> None:
    manifest = read_manifest(synthetic_bundle)
    assert sealed(manifest) == manifest
    older = manifest.model_copy(update={"schema_version": 3})
    assert sealed(older) == manifest
    entry = manifest.files["items/catalogue.json"]
    certified = older.model_copy(update={"files": {**older.files, "selector/certificate.json": entry}})
    assert sealed(certified).schema_version == 3
    assert sealed(certified.model_copy(update={"schema_version": 5})).schema_version == SCHEMA_VERSION
    assert sealed(certified).version == version_of(certified.model_dump(mode="json"))


def test_a_depths_digest_changes_with_what_it_runs_and_with_nothing_else(synthetic_bundle: Path) -> None:
    manifest = read_manifest(synthetic_bundle)

    def digests(**changes: object) -> list[str]:
        changed: Manifest = manifest.model_copy(update=changes)
        return [depth_digest(changed, depth) for depth in sorted(changed.depths)]

    before = digests()
    assert len(set(before)) == 4
    assert digests(name="other", created="later", strategy="greedy") == before
    swapped = manifest.depths[16].model_copy(update={"segments": manifest.depths[4].segments})
    assert digests(depths={**manifest.depths, 16: swapped})[:3] == before[:3]
    assert digests(depths={**manifest.depths, 16: swapped})[3] != before[3]
    assert digests(depths={4: manifest.depths[4], 12: manifest.depths[12]}) == [before[0], before[2]]
    shorter = manifest.model.model_copy(update={"max_history": 19})
    assert not set(digests(model=shorter)) & set(before)
