"""What the chart renders is valid for Kubernetes, safe, and has settings that the server reads.

Rendered by helm itself; without it these tests are skipped, since nothing else renders a chart as helm does.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import DEPLOY, read_yaml, schema, tool, unknown_settings

CHART = DEPLOY / "helm" / "fathom"
NEEDED: dict[str, Any] = {
    "image": {"repository": "registry.example/fathom"},
    "bundle": {"volume": {"persistentVolumeClaim": {"claimName": "bundles", "readOnly": True}}},
}
SAFE: dict[str, Any] = {**NEEDED, "tls": {"secretName": "tls"}, "access": {"secretName": "access"}}
FULL: dict[str, Any] = {
    **SAFE,
    "tls": {"secretName": "tls", "clientCa": True},
    "history": {"secretName": "history"},
    "autoscaling": {"enabled": True},
    "settings": {"profile": "cloud", "drain_s": 61.5, "max_queue": 512},
    "preStopSeconds": 7,
    "imagePullSecrets": [{"name": "pull"}],
    "podAnnotations": {"note": "here"},
    "nodeSelector": {"kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "networkPolicy": {
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "redis"}}}], "ports": [{"port": 6379}]}]
    },
    "extraVolumes": [{"name": "records", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "records", "mountPath": "/records"}],
}
OPEN: dict[str, Any] = {**NEEDED, "insecure": True}


def run_helm(folder: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    path = folder / "values.json"
    path.write_text(json.dumps(values))
    command = [tool("helm"), "template", "shop", str(CHART), "--namespace", "recs", "--values", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(folder: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects, by kind; services by name."""
    done = run_helm(folder, values)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {each["kind"] if each["kind"] != "Service" else each["metadata"]["name"]: each for each in objects}


def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return found


def settings(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(objects["ConfigMap"]["data"]["settings.yaml"])
    return found


@pytest.mark.parametrize("values", [SAFE, FULL, OPEN], ids=["safe", "full", "open"])
def test_every_object_is_valid_for_kubernetes(tmp_path: Path, values: dict[str, Any]) -> None:
    from jsonschema import Draft7Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT7

    folder = schema("kubernetes")
    definitions = json.loads((folder / "_definitions.json").read_bytes())
    registry = Registry().with_resource("_definitions.json", Resource.from_contents(definitions, DRAFT7))
    for each in render(tmp_path, values).values():
        group, _, version = each["apiVersion"].rpartition("/")
        parts = [each["kind"].lower(), *([group.split(".")[0]] if group else []), version]
        rules = json.loads((folder / f"{'-'.join(parts)}.json").read_bytes())
        errors = [error.message for error in Draft7Validator(rules, registry=registry).iter_errors(each)]
        assert errors == [], each["kind"]
        wrong = {**each, "spec": {**each.get("spec", {}), "imagined": 1}, "imagined": 1}
        assert not Draft7Validator(rules, registry=registry).is_valid(wrong)


def test_helm_lint_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps(FULL))
    command = [tool("helm"), "lint", "--strict", str(CHART), "--values", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_containers_have_no_rights(tmp_path: Path) -> None:
    spec = pod(render(tmp_path, SAFE))
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    assert "limits" in container["resources"]


@pytest.mark.parametrize("values", [SAFE, FULL], ids=["safe", "full"])
def test_a_pod_has_time_to_drain_and_is_not_killed_meanwhile(tmp_path: Path, values: dict[str, Any]) -> None:
    objects = render(tmp_path, values)
    (container,) = pod(objects)["containers"]
    drain_s, waits_s = settings(objects)["drain_s"], container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(objects)["terminationGracePeriodSeconds"] >= waits_s + drain_s + 5
    live = container["livenessProbe"]
    assert live["periodSeconds"] * (live["failureThreshold"] - 1) >= drain_s + 5


def test_probes_ask_healthz_in_the_way_that_the_server_speaks(tmp_path: Path) -> None:
    for values, scheme in ((SAFE, "HTTPS"), (OPEN, "HTTP")):
        (container,) = pod(render(tmp_path, values))["containers"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[name]["httpGet"] == {"path": "/healthz", "port": "metrics", "scheme": scheme}


def test_settings_are_those_of_the_server_and_secrets_stay_out(tmp_path: Path) -> None:
    from fathom.serving.config import load_settings

    objects = render(tmp_path, FULL)
    found = settings(objects)
    assert unknown_settings(found) == set()
    assert (found["tls_client_ca"], found["access"]) == ("/etc/fathom/tls/ca.crt", "/etc/fathom/access/access.yaml")
    assert "insecure" not in found
    assert "history" not in found
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(found))
    loaded = load_settings({}, file=path)
    assert (loaded.host, loaded.max_queue, loaded.drain_s, loaded.metrics_port) == ("0.0.0.0", 512, 61.5, 9464)
    (container,) = pod(objects)["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"grpc": loaded.port, "metrics": loaded.metrics_port}


def test_a_change_of_the_settings_restarts_the_pods(tmp_path: Path) -> None:
    sums = {
        render(tmp_path, {**SAFE, "settings": {"drain_s": 20, "max_queue": size}})["Deployment"]["spec"]["template"][
            "metadata"
        ]["annotations"]["checksum/settings"]
        for size in (100, 200)
    }
    assert len(sums) == 2


def test_services_and_policies_choose_the_pods(tmp_path: Path) -> None:
    objects = render(tmp_path, FULL)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    chosen = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        objects["shop-server"]["spec"]["selector"],
        objects["shop-server-headless"]["spec"]["selector"],
    ]
    assert all(each and each.items() <= labels.items() for each in chosen)
    assert objects["shop-server-headless"]["spec"]["clusterIP"] == "None"
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "shop-server"
    assert "replicas" not in objects["Deployment"]["spec"]


def test_nobody_is_let_in_where_nobody_is_named(tmp_path: Path) -> None:
    closed = {**SAFE, "networkPolicy": {"clients": [], "monitoring": []}}
    policy = render(tmp_path, closed)["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy.get("ingress")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "image/repository"),
        ({**NEEDED, "tls": {"secretName": "tls"}}, "or say insecure: true"),
        ({**OPEN, "tls": {"clientCa": True}}, "tls.clientCa needs tls.secretName"),
        ({**SAFE, "settings": {"drain_s": 5, "host": "::"}}, "'host'"),
        ({**SAFE, "settings": {"drain_s": 5, "workers": 4}}, "workers"),
        ({**SAFE, "image": {"repository": "x", "tag": "latest"}}, "tag"),
        ({**SAFE, "replicaCount": 2}, "replicaCount"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_missing_or_wrong_is_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    done = run_helm(tmp_path, values)
    assert done.returncode != 0
    assert said in done.stderr


def test_insecure_is_off_unless_it_is_said(tmp_path: Path) -> None:
    assert read_yaml(CHART / "values.yaml")["insecure"] is False
    assert settings(render(tmp_path, OPEN))["insecure"] is True


def test_the_chart_has_the_version_of_the_program() -> None:
    from fathom import __version__

    assert read_yaml(CHART / "Chart.yaml")["appVersion"] == __version__
    assert read_yaml(DEPLOY / "compose.yaml")["services"]["fathom"]["image"].endswith(f":{__version__}")
