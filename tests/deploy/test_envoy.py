"""deploy/envoy: a real Envoy sends each user to one of two real servers."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from deploy_tools import DEPLOY, read_yaml, tool

from fathom.client import Client
from fathom.errors import FathomError
from fathom.local import Local, running_server

CONFIG = DEPLOY / "envoy" / "affinity.yaml"
#: Calls until Envoy has found both servers healthy, or one gone: it says nothing of that by itself.
MOST_CALLS = 20_000


@pytest.fixture(scope="module")
def servers(make_bundle: Callable[..., Path]) -> Iterator[list[Local]]:
    with (
        running_server(make_bundle(counting_weight=0.0)) as one,
        running_server(make_bundle(counting_weight=0.01)) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def envoy(servers: list[Local]) -> Iterator[str]:
    """The address of an Envoy with the file's config, but for addresses."""
    program = tool("envoy")
    config = read_yaml(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = config["static_resources"]["listeners"][0]["address"]["socket_address"]
    place |= {"address": "127.0.0.1", "port_value": port}
    cluster = config["static_resources"]["clusters"][0]
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": int(address)}}}}
        for address in (each.address.rpartition(":")[2] for each in servers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "envoy.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [program, "-c", str(path), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def test_the_config_is_one_of_envoy() -> None:
    done = subprocess.run(
        [tool("envoy"), "--mode", "validate", "-c", str(CONFIG), "--log-level", "error"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_each_user_is_sent_to_one_server_and_to_the_other_when_that_is_gone(envoy: str, servers: list[Local]) -> None:
    users = [f"item-{number}" for number in range(30)]
    with Client(envoy, affinity_header="fathom-affinity") as client:

        def asked() -> list[str]:
            return [client.recommend([user], timeout_s=20).bundle_version for user in users]

        for _ in range(MOST_CALLS):
            try:
                if len(set(asked())) == 2:
                    break
            except FathomError:
                continue
        first = asked()
        assert len(set(first)) == 2
        assert asked() == asked() == first
        os.kill(servers[0].pid, signal.SIGKILL)
        after = asked()
    assert len(set(after)) == 1
    assert after[0] in first
