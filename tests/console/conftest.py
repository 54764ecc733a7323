"""A real server over a small bundle with a hostile title, and a real console of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from started import Started, running

from fathom.files import write_json
from fathom.runtime.manifest import CATALOGUE_FILE

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
TOKEN = "the-token-of-this-test"


@pytest.fixture(scope="session")
def hostile_title() -> str:
    """The title of item-3: markup with script in it."""
    return HOSTILE


@pytest.fixture(scope="session")
def token() -> str:
    """What the console is given for the server."""
    return TOKEN


@pytest.fixture(scope="session")
def hostile_bundle(make_bundle: Callable[..., Path], reseal: Callable[[Path], None]) -> Path:
    """The synthetic bundle, but the title of item-3 is markup with script in it."""
    path = make_bundle()
    catalogue = json.loads((path / CATALOGUE_FILE).read_bytes())
    catalogue["titles"][3] = HOSTILE
    write_json(path / CATALOGUE_FILE, catalogue)
    reseal(path)
    return path


@pytest.fixture(scope="session")
def server(hostile_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    log = tmp_path_factory.mktemp("served") / "log"
    options = ["--port", "0", "--metrics-port", "0", "--history", "memory", "--log-level", "warning"]
    with running(log, "serve", str(hostile_bundle), *options) as started:
        yield started


@pytest.fixture(scope="session")
def console(server: Started, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    log = tmp_path_factory.mktemp("console") / "log"
    metrics = f"http://{server.told['metrics_address']}/metrics"
    with running(
        log, "console", "--target", server.told["address"], "--port", "0", "--metrics-url", metrics, FATHOM_TOKEN=TOKEN
    ) as started:
        yield started
        assert log.read_text() == ""
