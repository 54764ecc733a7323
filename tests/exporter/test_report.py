"""The tables of `fathom bundle inspect` and `quality` say what the manifest says."""

from pathlib import Path

import pytest

from fathom.exporter.bundle.report import (
    depth_rows,
    evidence_rows,
    fact_rows,
    format_bytes,
    format_interval,
    format_layers,
    quality_rows,
)
from fathom.runtime.manifest import Manifest, MetricInterval, RequestTimeInfo
from fathom.runtime.manifest_file import read_manifest


@pytest.fixture
def manifest(synthetic_bundle: Path) -> Manifest:
    return read_manifest(synthetic_bundle)


def test_depths_are_listed_with_layers_engines_and_parity(manifest: Manifest) -> None:
    header, zero, first, second, *_ = depth_rows(manifest)
    assert header[0] == "depth"
    assert zero[:3] == ["0", "none", ""]
    assert first[:3] == ["4", "0-3", "04"]
    assert second[:3] == ["8", "0-7", "04+08"]
    assert first[4:6] == ["1.0e-06", "100.00%"]


def test_quality_has_intervals_of_the_metrics_that_exist(manifest: Manifest) -> None:
    header, zero, first, *_ = quality_rows(manifest)
    assert header == ["depth", "NDCG@10"]
    assert zero == ["0", ".0900 [.0800, .1000]"]
    assert first == ["4", ".1040 [.0900, .1300]"]


def test_the_shipped_strategy_is_marked(manifest: Manifest) -> None:
    one, two = MetricInterval(value=0.1, low=0.05, high=0.2), MetricInterval(value=-0.01, low=-0.02, high=0.0)
    evidence = {
        "prefix": {"ndcg@10/4": one},
        "nested": {"ndcg@10/4": one, "ndcg@10/mean-difference": two},
    }
    assert evidence_rows(manifest.model_copy(update={"strategy_evidence": evidence})) == [
        ["", "prefix *", "nested"],
        ["NDCG@10 / 4", ".1000 [.0500, .2000]", ".1000 [.0500, .2000]"],
        ["NDCG@10 / mean-difference", "", "-.0100 [-.0200, .0000]"],
    ]
    assert evidence_rows(manifest) == [[""]]


def test_facts_name_the_bundle_and_its_source(manifest: Manifest) -> None:
    facts = dict(fact_rows(manifest))
    assert manifest.version in facts["bundle"]
    assert facts["engines"] == "onnx, fp32, prefix (4 engines for 4 depths)"
    assert facts["profile"] == "all"
    assert facts["made by"] == "Fathom 0.1.0"
    changed = manifest.model_copy(
        update={"source": manifest.source.model_copy(update={"commit": "a" * 40 + "+changes"})}
    )
    assert dict(fact_rows(changed))["made by"] == "Fathom 0.1.0, commit aaaaaaaaaaaa+changes"


def test_timestamps_matter_to_engines_or_to_the_time_of_a_request(manifest: Manifest) -> None:
    gain = MetricInterval(value=0.01, low=0.0, high=0.02)
    model = manifest.model.model_copy(update={"uses_timestamps": False})
    for request_time, expected in ((None, "without"), (RequestTimeInfo(gain=gain), "with")):
        facts = dict(fact_rows(manifest.model_copy(update={"model": model, "request_time": request_time})))
        assert facts["history"].endswith(f" items, {expected} timestamps")


def test_numbers_are_short() -> None:
    assert [format_bytes(n) for n in (0, 999, 1_000, 620_400, 1_949_999)] == [
        "0 B",
        "999 B",
        "1 kB",
        "620 kB",
        "1.9 MB",
    ]
    assert format_layers((0, 1, 5, 9, 2, 3, 4)) == "0-1 5 9 2-4"
    assert format_layers(()) == ""
    assert format_interval(MetricInterval(value=1.0, low=0.5, high=1.5)) == "1.0000 [.5000, 1.5000]"
