"""Alerts, dashboard and autoscaling name metrics that a real server shows, with labels that these have."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from deploy_tools import DEPLOY, read_yaml, tool
from prometheus_client.parser import text_string_to_metric_families

from fathom.benchmarks.ports import free_port
from fathom.benchmarks.server import catalogue_ids, started
from fathom.client import Client

NAME = re.compile(r"\bfathom_\w+")
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "fathom.json"
#: What Prometheus and the histogram function add.
ADDED = {"instance", "job", "namespace", "pod", "le"}


@pytest.fixture(scope="module")
def shown(certified_bundle: Path) -> Iterator[dict[str, set[str]]]:
    """Labels by metric, of a server that has answered and refused, and has looked at what it answered."""
    port = free_port()
    options = ("--metrics-port", str(port), "--feedback-share", "1", "--policy", "certified")
    items = catalogue_ids(certified_bundle)
    with started(certified_bundle, *options) as server, Client(server.address) as client:
        for length in range(1, 20):
            client.recommend([*items[:length], "unknown"])
        found: dict[str, set[str]] = {}
        # Feedback waits for an idle engine, so its metrics come when it has run.
        for _ in range(500):
            if "fathom_drift_mean_rank" in found:
                break
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    for sample in family.samples:
                        found.setdefault(sample.name, set()).update(sample.labels)
        yield found


def expressions() -> dict[str, str]:
    """Every expression of deploy/, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for group in read_yaml(ALERTS)["groups"] for rule in group["rules"]}
    for panel in json.loads(DASHBOARD.read_bytes())["panels"]:
        found |= {f"panel {panel['title']} {each['refId']}": each["expr"] for each in panel["targets"]}
    for rule in read_yaml(DEPLOY / "prometheus" / "adapter.yaml")["rules"]["custom"]:
        found |= {"adapter query": rule["seriesQuery"], "adapter metric": rule["metricsQuery"]}
    return found


def strangers(expression: str, shown: dict[str, set[str]]) -> set[str]:
    """Metrics of an expression that no server has, and labels that its metrics have not."""
    names = set(NAME.findall(expression))
    labels = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", expression))
    for group in re.findall(r"\bby \(([\w, ]*)\)", expression):
        labels |= set(group.split(", "))
    known = ADDED.union(*(shown.get(name, set()) for name in names))
    return {name for name in names if name not in shown} | (labels - known)


def test_every_metric_and_label_that_is_named_is_shown_by_a_server(shown: dict[str, set[str]]) -> None:
    named = expressions()
    assert {where: wrong for where, text in named.items() if (wrong := strangers(text, shown))} == {}
    assert len(named) > 25


def test_a_metric_or_label_that_is_not_shown_would_be_noticed(shown: dict[str, set[str]]) -> None:
    assert strangers('rate(fathom_callz_total{status="OK"}[5m])', shown) == {"fathom_callz_total", "status"}
    assert strangers("sum by (colour) (fathom_in_flight)", shown) == {"colour"}


def test_the_autoscaler_scales_by_the_metric_that_the_adapter_makes() -> None:
    (rule,) = read_yaml(DEPLOY / "prometheus" / "adapter.yaml")["rules"]["custom"]
    chart = (DEPLOY / "helm" / "fathom" / "templates" / "horizontalpodautoscaler.yaml").read_text()
    assert f"metric: {{name: {rule['name']['as']}}}" in chart


def test_every_panel_has_a_place_of_its_own_and_the_provisioned_source() -> None:
    board: dict[str, Any] = json.loads(DASHBOARD.read_bytes())
    (source,) = read_yaml(DEPLOY / "grafana" / "datasources.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})


@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool_accepts_rules_and_settings_and_every_alert_fires_when_it_should(command: list[str]) -> None:
    done = subprocess.run(
        [tool("promtool"), *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test() -> None:
    alerts = {rule["alert"] for group in read_yaml(ALERTS)["groups"] for rule in group["rules"]}
    tests = read_yaml(DEPLOY / "prometheus" / "alerts_test.yml")["tests"]
    assert {each["alertname"] for test in tests for each in test["alert_rule_test"]} == alerts


def test_promtool_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, (where, text) in enumerate(expressions().items())
        if where.startswith("panel")
    ]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([tool("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
