import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import fathom.loadtests
from fathom.client import Client
from fathom.errors import ConfigError, DataError, NotFoundError
from fathom.loadtests.replay import replay
from fathom.loadtests.traces import Trace, UserHistory, make_trace
from fathom.loadtests.users.invented import check_removable
from fathom.loadtests.users.load_run import ADMIN, MARK, LoadRun, failure_text
from fathom.loadtests.users.options import allowed
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.principal import ADMIN_METHODS

LOCUSTFILE = Path(fathom.loadtests.__path__[0]) / "locustfile.py"
SERVE = """
import sys
from pathlib import Path
from fathom.serving.config import load_settings
from fathom.serving.process import serve
bundle, experiments, log = map(Path, sys.argv[1:])
chosen = {"port": 0, "admin_port": 0, "history": "memory", "catalogue": "memory"}
settings = load_settings(chosen | {"experiments": experiments, "experiments_log": log}, environment={})
serve(settings, bundle, ready=lambda info: print(info.address, info.admin_address, flush=True))
"""
ARMS = {"control": {"share": 0.5}, "other": {"share": 0.5}}
EXPERIMENT = {"unit": "session", "arms": ARMS, "primary": {"outcome": "buy"}}
NO_TLS = {"tls": False, "ca": "", "cert": "", "key": "", "metadata": []}


class Addresses(NamedTuple):
    main: str
    admin: str


@pytest.fixture(scope="module")
def server(synthetic_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    folder = tmp_path_factory.mktemp("experiments")
    # JSON is YAML, and has no aliases.
    (folder / "experiments.yaml").write_text(json.dumps({"salt": "a-salt-of-tests", "experiments": {"x": EXPERIMENT}}))
    program = [
        sys.executable,
        "-c",
        SERVE,
        str(synthetic_bundle),
        str(folder / "experiments.yaml"),
        str(folder / "log"),
    ]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield Addresses(*process.stdout.readline().split())
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


def test_users_of_every_rpc_are_answered_in_steps_and_leave_nothing_behind(
    server: Addresses, trace: Path, tmp_path: Path
) -> None:
    done = locust(
        *("--steps", "13,16", "--step-s", "1", "--host", server.main, "--admin-host", server.admin, "--equal-weights"),
        *("--histories", str(trace), "--think-ms", "5", "--profiles", "mobile,cloud", "--deadline-ms", "20000"),
        *("--batch-size", "4", "--stream-size", "4", "--metadata", "fathom-client=locust"),
        *("--write-events", "--write-items", "--experiments", "--reload"),
        *("--html", str(tmp_path / "out" / "report.html"), "--csv", str(tmp_path / "out" / "run")),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{server.main} serves synthetic [0-9a-f]{{12}}, transport (http2|aio)", done.stderr)
    assert "may be left" not in done.stderr

    stats = {(entry["method"], entry["name"]): entry for entry in json.loads(done.stdout)}
    assert sum(entry["num_failures"] for entry in stats.values()) == 0
    depths = {f"depth {depth}" for depth in (0, 4, 8, 12, 16)}
    how = {
        (kind, rpc): {
            name.partition(" ")[2] for method, name in stats if (method, name.partition(" ")[0]) == (kind, rpc)
        }
        for kind, rpc in {(method, name.partition(" ")[0]) for method, name in stats}
    }
    rpcs = {method.name for method in pb.DESCRIPTOR.services_by_name["Recommender"].methods}
    # What a change of an experiment does cannot be undone.
    assert {rpc for kind, rpc in how if kind == "gRPC"} == rpcs - {"ChangeExperiment"}
    for kind_and_rpc, found in how.items():
        if kind_and_rpc in (("gRPC", "Recommend"), ("answer", "RecommendBatch"), ("answer", "RecommendStream")):
            assert found <= depths
        else:
            assert found == ({""} if kind_and_rpc == ("first answer", "RecommendStream") else {"OK"})
    streams = stats["gRPC", "RecommendStream OK"]["num_requests"]
    assert stats["first answer", "RecommendStream"]["num_requests"] == streams
    answers = [
        entry for (kind, name), entry in stats.items() if kind == "answer" and name.startswith("RecommendStream ")
    ]
    assert sum(entry["num_requests"] for entry in answers) == 4 * streams

    report = (tmp_path / "out" / "report.html").read_text()
    assert "Locust is a closed loop" in report
    assert re.search(rf"Target {server.main}: bundle synthetic [0-9a-f]{{12}}, transport (http2|aio)", report)
    assert re.findall(r"<tr><td>(\d+)</td>", report) == ["13", "16"]
    assert (tmp_path / "out" / "run_stats.csv").read_text().count("\n") > len(rpcs)

    with Client(server.admin) as admin, Client(server.main) as client:
        listed = admin.list_items(size=1_000).items
        assert {each.item.id.rpartition("-")[0] for each in listed} == {f"{MARK}-item", f"{MARK}-removed"}
        assert all(each.removed for each in listed)
        for number in range(50):
            with pytest.raises(NotFoundError):
                client.recommend(user_id=f"{MARK}-user-{number}", strict=True)


def test_errors_are_listed_by_status_and_who_may_not_write_is_left_out(server: Addresses, trace: Path) -> None:
    done = locust(
        *("-u", "1", "-r", "1", "-t", "1s", "--host", server.main, "--histories", str(trace)),
        *("--profiles", "nobody", "RecommendUser", "UpsertItemsUser"),
    )
    assert done.returncode == 1
    assert "left out: UpsertItemsUser: it writes invented items into the catalogue; add --write-items" in done.stderr
    assert {entry["name"] for entry in json.loads(done.stdout)} == {"Recommend NOT_FOUND"}


def test_without_a_server_there_is_one_line_and_no_report(trace: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = locust("-u", "1", "-t", "1s", "--host", "127.0.0.1:1", "--histories", str(trace), "--html", str(report))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "INFO/" not in line]
    assert line.startswith("error: 127.0.0.1:1: no answer: ")
    assert not report.exists()


def test_histories_that_are_none_are_an_error(tmp_path: Path) -> None:
    options = SimpleNamespace(histories=str(tmp_path), profiles="", deadline_ms=100.0, admin_host="", **NO_TLS)
    with pytest.raises(DataError, match="neither a trace nor a dataset folder"):
        LoadRun(options, "http://127.0.0.1:1/")


def test_nothing_is_written_that_could_not_be_removed_again(server: Addresses, trace: Path) -> None:
    options = {"histories": str(trace), "profiles": "", "deadline_ms": 100.0, **NO_TLS}
    on_admin_port = LoadRun(SimpleNamespace(**options, admin_host=server.admin), server.main)
    check_removable(on_admin_port, {"", "write_events", "write_items"})
    nowhere = LoadRun(SimpleNamespace(**options, admin_host=""), server.main)
    check_removable(nowhere, {"", "experiments"})
    for option in ("write_events", "write_items"):
        with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}: what is written could not be removed"):
            check_removable(nowhere, {option})


def test_users_run_where_their_option_is_given() -> None:
    free = SimpleNamespace(__name__="RecommendUser", asks_for="", because="")
    writer = SimpleNamespace(__name__="UpsertItemsUser", asks_for="write_items", because="it writes")
    options = SimpleNamespace(user_classes=[], write_items=False)
    assert allowed([free, writer], options) == [free]
    with pytest.raises(ConfigError, match="UpsertItemsUser: it writes; add --write-items"):
        allowed([writer], options)
    options.write_items = True
    assert allowed([free, writer], options) == [free, writer]


def test_an_error_is_listed_once_whatever_its_figures_are() -> None:
    first, second = (failure_text("RESOURCE_EXHAUSTED", f"{ms} ms left,\n too full") for ms in (3.5, 1_200))
    assert first == second == "RESOURCE_EXHAUSTED: # ms left, too full"


def test_what_goes_to_the_admin_port_is_what_the_server_answers_there() -> None:
    assert set(ADMIN_METHODS) == ADMIN


def test_the_replayer_measures_the_real_server(server: Addresses, trace: Path) -> None:
    report = replay(server.main, Trace.load(trace), deadline_ms=5_000)
    assert report.statuses == {"OK": report.requests}
    assert report.bundle.startswith("synthetic ")
    assert report.transport in ("http2", "aio")
    assert sum(report.depths.values()) == report.requests
    assert set(report.reasons) <= {"deepest", "deadline"}
