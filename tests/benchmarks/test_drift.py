"""The benchmark of drift asks a real server, and its section says what is stored."""

import json
from functools import partial
from pathlib import Path

import pytest

from fathom.benchmarks.__main__ import main
from fathom.benchmarks.systems import drift
from fathom.exporter.certification.certify import certify


def test_phases_of_a_changing_stream_are_stored_and_told(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nearly everything may be lost, so that something is certified by a few users.
    monkeypatch.setattr(drift, "EPS", 0.9)
    monkeypatch.setattr(drift, "DELTA", 0.2)
    monkeypatch.setattr(drift, "certify", partial(certify, floor=0.1, below=0.9))
    monkeypatch.setattr(drift, "BEFORE", 20)
    network = f"ml-100k={tiny_build / 'bundle'}:{tiny_build / 'dataset'}"
    main(["run", "drift", network, "--results", str(tmp_path)])
    phases = json.loads((tmp_path / "drift.json").read_bytes())["result"]["phases"]
    assert [each["phase"] for each in phases] == ["as certified", "changed", "after the alarm", "certified again"]
    first, changed, *_ = phases
    assert (first["requests"], first["alarm"]) == (20, False)
    assert sum(first["depths"].values()) == pytest.approx(1)
    assert sum(each["requests"] for each in phases) == 60
    assert changed["requests"] == 40 or changed["alarm"]
    page = drift.BENCHMARK.section(tmp_path)
    assert "| as certified | 20 |" in page
    assert drift.BENCHMARK.section(tmp_path / "nothing") == ""
