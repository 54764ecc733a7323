import os
from pathlib import Path

import psutil
import pytest

from fathom.benchmarks.server import CORES, on_core, started
from fathom.benchmarks.systems import server_start
from fathom.benchmarks.systems.server_start import measure_start
from fathom.errors import FathomError, UnavailableError


def test_fathom_serve_is_ready_and_holds_no_offline_library(synthetic_bundle: Path) -> None:
    start = measure_start(synthetic_bundle, requests=20)
    assert 0 < start.ready_s < start.answered_s
    assert 20 < start.ready_mb < start.served_mb + 20


def test_a_server_with_a_forbidden_library_is_not_measured(
    synthetic_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_start, "OFFLINE_ONLY", {"numpy": "_multiarray_umath"})
    with pytest.raises(FathomError, match="has loaded numpy"):
        measure_start(synthetic_bundle, requests=20)


def test_the_server_ends_with_the_block(synthetic_bundle: Path) -> None:
    with started(synthetic_bundle) as server:
        assert psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(server.pid)


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="did not start"), started(tmp_path):
        pass


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_a_server_and_its_client_are_on_cores_of_their_own(synthetic_bundle: Path) -> None:
    before = os.sched_getaffinity(0)
    with on_core(1), on_core(0), started(synthetic_bundle) as server, on_core(1):
        assert os.sched_getaffinity(server.pid) == {CORES[0]}
        assert os.sched_getaffinity(0) == {CORES[1]}
    assert os.sched_getaffinity(0) == before
