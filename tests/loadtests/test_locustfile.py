import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fathom.loadtests
from fathom.loadtests.replay import replay
from fathom.loadtests.traces import Trace, UserHistory, make_trace

LOCUSTFILE = Path(fathom.loadtests.__path__[0]) / "locustfile.py"
SERVE = """
import sys
from pathlib import Path
from fathom.serving.config import load_settings
from fathom.serving.process import serve
serve(load_settings({"port": 0}, environment={}), Path(sys.argv[1]), ready=lambda info: print(info.address, flush=True))
"""


@pytest.fixture(scope="module")
def address(synthetic_bundle: Path) -> Iterator[str]:
    program = [sys.executable, "-c", SERVE, str(synthetic_bundle)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    histories = [UserHistory(tuple(f"item-{i * 7 % 50}" for i in range(n))) for n in range(1, 30)]
    made = make_trace(histories, kind="bursty", rate_per_s=100, duration_s=1, profiles=("mobile", "edge", "cloud"))
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    made.save(path)
    return path


def locust(*options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--json", *options]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


def test_locust_users_are_answered_and_listed_by_depth(address: str, trace: Path) -> None:
    done = locust(
        *("-u", "4", "-r", "4", "-t", "2s", "--host", address, "--histories", str(trace)),
        *("--think-ms", "5", "--profiles", "mobile,cloud", "--metadata", "fathom-client=locust"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{address} serves synthetic [0-9a-f]{{12}}, transport (http2|aio)", done.stderr)
    stats = json.loads(done.stdout)
    names = {entry["name"] for entry in stats}
    assert names <= {f"Recommend depth {depth}" for depth in (4, 8, 12, 16)}
    assert len(names) >= 2
    assert sum(entry["num_requests"] for entry in stats) > 5
    assert sum(entry["num_failures"] for entry in stats) == 0


def test_locust_lists_errors_by_status(address: str, trace: Path) -> None:
    done = locust(
        *("-u", "1", "-r", "1", "-t", "2s", "--host", address, "--histories", str(trace), "--profiles", "nobody")
    )
    assert done.returncode == 1
    assert {entry["name"] for entry in json.loads(done.stdout)} == {"Recommend NOT_FOUND"}


def test_locust_without_histories_says_so_in_one_line(tmp_path: Path) -> None:
    done = locust("-u", "1", "-t", "1s", "--host", "127.0.0.1:1", "--histories", str(tmp_path))
    assert done.returncode != 0
    assert f"error: {tmp_path}: neither a trace nor a dataset folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_replayer_measures_the_real_server(address: str, trace: Path) -> None:
    report = replay(address, Trace.load(trace), deadline_ms=5_000)
    assert report.statuses == {"OK": report.requests}
    assert report.bundle.startswith("synthetic ")
    assert report.transport in ("http2", "aio")
    assert sum(report.depths.values()) == report.requests
    assert set(report.reasons) <= {"deepest", "deadline"}
