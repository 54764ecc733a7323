"""The stored run of the image's steps, and what is measured of a folder."""

import os
from pathlib import Path

from fathom.benchmarks.record import load_run
from fathom.benchmarks.systems.image import render, size

STORED = Path(__file__).parents[2] / "results" / "image.json"


def test_the_image_is_below_350_mb_and_serves_without_rights_from_a_root_that_it_cannot_write() -> None:
    run = load_run(STORED)
    result, container = run["result"], run["result"]["container"]
    assert result["base_mb"] + result["added_mb"] < 350
    assert container["user"] == "10001:10001"
    assert int(container["capabilities"], 16) == 0
    assert (container["health_before"], container["health"], container["exit_code"]) == (1, 0, 0)
    assert f"add {result['added_mb']:.0f} MB" in render(run)


def test_files_with_several_names_count_once_and_folders_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(2_000_000))
    os.link(tmp_path / "one", tmp_path / "two")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "three").write_bytes(bytes(500_000))
    assert size(tmp_path) == (2.5, 2)
