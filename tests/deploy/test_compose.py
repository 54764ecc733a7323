"""The compose file is valid, keeps to loopback, and gives no service more rights than it needs."""

import json
import re
from typing import Any

import pytest
from deploy_tools import DEPLOY, ROOT, read_yaml, schema, unknown_settings

COMPOSE = read_yaml(DEPLOY / "compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_it_is_valid_against_the_schema_of_compose_files() -> None:
    from jsonschema import Draft7Validator

    # In the draft that it names, `id` and `definitions` mean the same as in draft 7.
    validator = Draft7Validator(json.loads(schema("compose.json").read_bytes()))
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    wrong = {"services": {"fathom": {"imagine": "x"}}}
    assert [error.message for error in validator.iter_errors(wrong)] != []


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_keeps_to_its_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "build" in service or re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", service["image"])


def test_every_volume_network_and_file_that_is_named_is_there() -> None:
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            elif not source.startswith("${"):
                assert source in COMPOSE["volumes"]
    build = SERVICES["fathom"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).exists()


def test_the_server_gets_settings_that_it_has_and_time_to_drain() -> None:
    from fathom.serving.config import ServerSettings

    environment = SERVICES["fathom"]["environment"]
    assert unknown_settings(name.removeprefix("FATHOM_").lower() for name in environment) == set()
    assert environment["FATHOM_INSECURE"] == "true"
    assert int(SERVICES["fathom"]["stop_grace_period"].removesuffix("s")) > ServerSettings().drain_s + 5
    store = environment["FATHOM_HISTORY"].removeprefix("redis://").split(":")[0]
    assert set(SERVICES["fathom"]["networks"]) & set(SERVICES[store]["networks"])


def test_prometheus_scrapes_the_port_on_which_the_image_shows_its_metrics() -> None:
    from fathom.benchmarks.dockerfile import lineage, read_stages

    environment: dict[str, str] = {}
    for stage in lineage(read_stages(DEPLOY / "docker" / "Dockerfile"), "cpu"):
        for each in stage.instructions:
            if each.name == "ENV":
                environment |= each.settings(environment)
    (job,) = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    (config,) = job["static_configs"]
    assert config["targets"] == [f"fathom:{environment['FATHOM_METRICS_PORT']}"]
    (source,) = read_yaml(DEPLOY / "grafana" / "datasources.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
