"""The version of a bundle follows from its files."""

from fathom.runtime.manifest import FileEntry, bundle_version


def test_equal_files_have_equal_versions_in_any_order() -> None:
    one, two = FileEntry(bytes=1, sha256="a" * 64), FileEntry(bytes=2, sha256="b" * 64)
    assert bundle_version({"x": one, "y": two}) == bundle_version({"y": two, "x": one})
    assert bundle_version({"x": one, "y": two}) != bundle_version({"x": two, "y": one})
    assert len(bundle_version({})) == 12
