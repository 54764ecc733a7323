"""Settings: where they come from, which wins, and what is refused with its source."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import ConfigError
from fathom.serving.config import ServerSettings, load_settings


@contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged inside."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("fathom.serving")
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_sources_the_defaults_hold() -> None:
    settings = load_settings(environment={})
    assert settings == ServerSettings()
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 50051, None)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = written(tmp_path / "server.yaml", "port: 1\nmax_queue: 11\ndrain_s: 7\n")
    environment = {"FATHOM_PORT": "2", "FATHOM_MAX_QUEUE": "22", "HOME": "/"}
    settings = load_settings({"port": 3, "profile": None}, environment=environment, file=file)
    assert (settings.port, settings.max_queue, settings.drain_s, settings.profile) == (3, 22, 7.0, "cloud")


def test_the_environment_may_name_the_file_and_the_command_line_another(tmp_path: Path) -> None:
    first = written(tmp_path / "first.yaml", "port: 1\n")
    second = written(tmp_path / "second.yaml", "port: 2\n")
    environment = {"FATHOM_CONFIG": str(first)}
    assert load_settings(environment=environment).port == 1
    assert load_settings(environment=environment, file=second).port == 2


def refusal(folder: Path, command_line: dict[str, object], environment: dict[str, str], text: str) -> str:
    """The one line with which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        load_settings(command_line, environment=environment, file=written(folder / "server.yaml", text))
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 300 + len(str(folder))
    return said


@pytest.mark.parametrize(
    ("command_line", "environment", "text", "expected"),
    [
        ({"prot": 1}, {}, "", "--prot: unknown setting; did you mean --port?"),
        ({}, {"FATHOM_MAX_QUEU": "1"}, "", "FATHOM_MAX_QUEU: unknown setting; did you mean FATHOM_MAX_QUEUE?"),
        ({}, {}, "metricsport: 1", "server.yaml: metricsport: unknown setting; did you mean metrics_port?"),
        ({}, {"FATHOM_XYZZY": "1"}, "", "FATHOM_XYZZY: unknown setting; fathom serve --help lists them"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(
    tmp_path: Path, command_line: dict[str, object], environment: dict[str, str], text: str, expected: str
) -> None:
    assert expected in refusal(tmp_path, command_line, environment, text)


@pytest.mark.parametrize(
    ("command_line", "environment", "text", "expected"),
    [
        ({"port": 70000}, {}, "", "--port: 70000 is not possible"),
        ({"port": True}, {}, "", "--port: True is not possible"),
        ({}, {"FATHOM_PORT": "many"}, "", "FATHOM_PORT: 'many' is not possible"),
        ({}, {}, "max_queue: 0", "server.yaml: max_queue: 0 is not possible"),
        ({}, {}, "log_format: xml", "server.yaml: log_format: 'xml' is not possible"),
        ({}, {}, "drain_s: .nan", "drain_s: nan is not possible"),
        ({"metrics_port": "65536"}, {}, "", "--metrics-port: '65536' is not possible"),
        ({"metrics_port": "-1"}, {}, "", "--metrics-port: '-1' is not possible"),
        ({"metrics_port": "65534", "workers": 3}, {}, "", "worker 2 would show its metrics on port 65536"),
        ({"host": "unix:/tmp/fathom.sock"}, {}, "", "--host: 'unix:/tmp/fathom.sock' is not possible"),
        ({"host": "localhost:50051"}, {}, "", "without port, brackets or scheme"),
        ({}, {}, "host: '[::1]'", "server.yaml: host: '[::1]' is not possible"),
        ({"host": "x" * 64}, {}, "", "is not possible: give a host name"),
        ({}, {}, "- 1", "not a mapping; a settings file is a list of `key: value` lines"),
        ({}, {}, "port: 1\nport: 2", "server.yaml:2: port is given twice"),
        ({}, {}, "port: " + "9" * 4_000, "server.yaml: port: 9"),
        ({}, {}, "port: 1" + ":1" * 9_000, "server.yaml: port: a huge number is not possible"),
        ({}, {}, "drain_s: 1" + ":1" * 9_000 + ".0", "drain_s cannot be read"),
        ({}, {}, "port: [", "server.yaml:1: not YAML"),
    ],
)
def test_impossible_values_are_refused_with_their_source(
    tmp_path: Path, command_line: dict[str, object], environment: dict[str, str], text: str, expected: str
) -> None:
    assert expected in refusal(tmp_path, command_line, environment, text)


def test_variables_of_other_commands_are_no_settings() -> None:
    assert load_settings(environment={"FATHOM_RUNS": "x", "FATHOM_TOKEN": "secret"}) == load_settings(environment={})


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "::", "::1", "fe80::1%eth0", "my-host.example.org.", "a_b"])
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert load_settings({"host": host}, environment={}).host == host


@given(
    st.from_regex(r"(_[A-Z][A-Z0-9]{0,8})?", fullmatch=True),
    st.integers(1, 65_535),
    st.sampled_from(["TCP", "UDP", "SCTP"]),
    st.sampled_from(["10.0.0.1", "[fd00::1]"]),
)
def test_what_kubernetes_sets_for_a_service_is_ignored_with_one_warning(
    more: str, port: int, protocol: str, address: str
) -> None:
    at = f"FATHOM{more}"
    link = f"{protocol.lower()}://{address}:{port}"
    injected = {
        f"{at}_SERVICE_HOST": address,
        f"{at}_SERVICE_PORT": str(port),
        f"{at}_SERVICE_PORT_GRPC": str(port),
        f"{at}_PORT": link,
        f"{at}_PORT_{port}_{protocol}": link,
        f"{at}_PORT_{port}_{protocol}_PROTO": protocol.lower(),
        f"{at}_PORT_{port}_{protocol}_PORT": str(port),
        f"{at}_PORT_{port}_{protocol}_ADDR": address,
    }
    with logged() as records:
        settings = load_settings(environment={**injected, "FATHOM_MAX_QUEUE": "7"})
    assert settings == ServerSettings(max_queue=7)
    assert len(records) == 1
    assert all(name in records[0] for name in injected)


def test_settings_that_look_like_those_of_kubernetes_are_still_settings() -> None:
    settings = load_settings(environment={"FATHOM_PORT": "1", "FATHOM_METRICS_PORT": "2", "FATHOM_HOST": "h"})
    assert (settings.port, settings.metrics_port, settings.host) == (1, 2, "h")
    with pytest.raises(ConfigError, match="FATHOM_HOST: 'tcp://10"):
        load_settings(environment={"FATHOM_HOST": "tcp://10.0.0.1:1"})


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{n}: &{n} [{', '.join([f'*{b}'] * 9)}]\n" for b, n in pairwise("abcdefghij"))
    with pytest.raises(ConfigError, match=r"server\.yaml:2: not YAML: aliases \(\*name\) are not allowed"):
        load_settings(environment={}, file=written(tmp_path / "server.yaml", bomb))


def test_only_a_small_regular_file_is_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    huge = written(tmp_path / "huge", "#" * 70_000)
    for path, what in ((fifo, "regular"), (tmp_path, "regular"), (Path("/dev/zero"), "regular"), (huge, "longer than")):
        with pytest.raises(ConfigError, match=f"{what}.*this is not a settings file"):
            load_settings(environment={"FATHOM_CONFIG": str(path)})


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_settings(environment={}, file=written(tmp_path / "server.yaml", "# nothing\n")) == ServerSettings()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(environment={}, file=tmp_path / "nowhere.yaml")


def test_metrics_can_be_switched_off_anywhere(tmp_path: Path) -> None:
    on = written(tmp_path / "on.yaml", "metrics_port: 0")
    off = written(tmp_path / "off.yaml", "metrics_port: off")
    assert load_settings(environment={}, file=on).metrics_port == 0
    assert load_settings(environment={}, file=off).metrics_port is None
    assert load_settings(environment={"FATHOM_METRICS_PORT": "off"}, file=on).metrics_port is None
    assert load_settings({"metrics_port": "off"}, environment={}, file=on).metrics_port is None


def test_recertification_can_be_switched_off_in_a_file(tmp_path: Path) -> None:
    off = written(tmp_path / "off.yaml", "recertify: off")
    assert load_settings(environment={}, file=off).recertify == "off"
    assert load_settings({"recertify": "auto"}, environment={}, file=off).recertify == "auto"
