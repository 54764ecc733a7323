"""The systemd unit is valid, exposes little, and its restrictions are ones that the server can live with."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_tools import DEPLOY, tool

UNIT = DEPLOY / "systemd" / "fathom.service"
# Forbids writable memory to be executed, as MemoryDenyWriteExecute does, then becomes the server.
DENY = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(99)
os.execv(sys.executable, [sys.executable, "-m", "fathom", "serve", sys.argv[1], "--port", "0", "--json"])
"""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here, as verify demands."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/fathom/bin/fathom", sys.executable))
    return path


def test_systemd_accepts_the_unit(unit: Path) -> None:
    command = [tool("systemd-analyze"), "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=perhaps"))
    assert UNIT.name in subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_systemd_rates_its_exposure_as_low(unit: Path) -> None:
    command = [tool("systemd-analyze"), "security", "--offline=yes", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rating = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert rating, done.stderr
    assert float(rating[1]) < 2


def test_the_command_is_one_that_the_program_knows_and_has_time_to_drain() -> None:
    from typer.main import get_command

    from fathom.cli import app
    from fathom.serving.config import ServerSettings

    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    program, name, _, option, _ = service["ExecStart"].split()
    serve = get_command(app).commands[name]  # type: ignore[attr-defined]
    assert program == "/opt/fathom/bin/fathom"
    assert option in {each for param in serve.get_params(serve.context_class(serve)) for each in param.opts}
    assert int(service["TimeoutStopSec"]) > ServerSettings().drain_s + 5
    assert service["User"] != "root"


def test_the_server_starts_where_no_writable_memory_may_be_executed(synthetic_bundle: Path) -> None:
    command = [sys.executable, "-c", DENY, str(synthetic_bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        process.terminate()
    if process.returncode == 99:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert json.loads(ready)["address"].startswith("127.0.0.1:")
