from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.serving.config import ServerSettings, load_settings


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


@pytest.mark.parametrize(
    ("command_line", "environment", "text", "expected"),
    [
        ({"prot": 1}, {}, "", "--prot: unknown setting; did you mean --port?"),
        ({}, {"FATHOM_MAX_QUEU": "1"}, "", "FATHOM_MAX_QUEU: unknown setting; did you mean FATHOM_MAX_QUEUE?"),
        ({}, {}, "metricsport: 1", "server.yaml: metricsport: unknown setting; did you mean metrics_port?"),
        ({}, {"FATHOM_XYZZY": "1"}, "", "FATHOM_XYZZY: unknown setting; known keys: host, port"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(
    tmp_path: Path, command_line: dict[str, object], environment: dict[str, str], text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(command_line, environment=environment, file=written(tmp_path / "server.yaml", text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command_line", "environment", "text", "expected"),
    [
        ({"port": 70000}, {}, "", "--port: 70000 is not possible"),
        ({"port": True}, {}, "", "--port: True is not possible"),
        ({}, {"FATHOM_PORT": "many"}, "", "FATHOM_PORT: 'many' is not possible"),
        ({}, {}, "max_queue: 0", "server.yaml: max_queue: 0 is not possible"),
        ({}, {}, "log_format: xml", "server.yaml: log_format: 'xml' is not possible"),
        ({}, {}, "drain_s: .nan", "drain_s: nan is not possible"),
        ({}, {}, "- 1", "a settings file is a mapping"),
        ({}, {}, "port: [", "server.yaml:1: not YAML"),
    ],
)
def test_impossible_values_are_refused_with_their_source(
    tmp_path: Path, command_line: dict[str, object], environment: dict[str, str], text: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(command_line, environment=environment, file=written(tmp_path / "server.yaml", text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(environment={}, file=tmp_path / "nowhere.yaml")


def test_metrics_can_be_switched_off_anywhere(tmp_path: Path) -> None:
    on = written(tmp_path / "on.yaml", "metrics_port: 0")
    off = written(tmp_path / "off.yaml", "metrics_port: off")
    assert load_settings(environment={}, file=on).metrics_port == 0
    assert load_settings(environment={}, file=off).metrics_port is None
    assert load_settings(environment={"FATHOM_METRICS_PORT": "off"}, file=on).metrics_port is None
    assert load_settings({"metrics_port": "off"}, environment={}, file=on).metrics_port is None
