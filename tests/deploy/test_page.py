"""What docs/deploying.md shows can be done: files, targets, values and settings exist."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from deploy_tools import DEPLOY, ROOT, tool, unknown_settings

from fathom.benchmarks.dockerfile import read_stages

TEXT = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(each) for each in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]
COMMANDS = [
    shlex.split(line.partition("  #")[0])
    for line in re.sub(r" \\\n +", " ", TEXT).splitlines()
    if re.match(r" {4}(docker|helm|kubectl|install|systemctl|\S+pip|python3) ", line)
]


def test_commands_of_every_kind_are_found() -> None:
    assert {command[0] for command in COMMANDS} >= {"docker", "helm", "kubectl", "install", "systemctl", "python3"}


def test_every_file_of_ours_in_a_command_exists() -> None:
    ours = [word for command in COMMANDS for word in command if word.startswith("deploy/") or word == "constraints.txt"]
    assert len(ours) > 8
    assert [word for word in ours if not (ROOT / word).exists()] == []
    named = re.findall(r"`(deploy/[\w./-]+)`", TEXT)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_target_and_variable_is_one() -> None:
    stages = {stage.name for stage in read_stages(DEPLOY / "docker" / "Dockerfile")}
    targets = [
        following for command in COMMANDS for word, following in itertools.pairwise(command) if word == "--target"
    ]
    assert targets == ["gpu"]
    assert set(targets) <= stages
    variables = {each.lower() for each in re.findall(r"FATHOM_(\w+)", TEXT)} - {"config"}
    assert unknown_settings(variables) == set()


def test_every_installation_names_extras_that_exist() -> None:
    extras = {extra for group in re.findall(r"'\.\[([\w,]+)\]'", TEXT) for extra in group.split(",")}
    assert extras == {"redis", "sign", "jwt", "otel", "web"}


def test_the_values_render(tmp_path: Path) -> None:
    (values,) = (block for block in BLOCKS if "bundle" in block)
    (tmp_path / "production.yaml").write_text(yaml.safe_dump(values))
    (command,) = (each for each in COMMANDS if "deploy/helm/fathom" in each)
    assert command[:3] == ["helm", "upgrade", "--install"]
    chart = str(ROOT / command[4])
    rendered = [tool("helm"), "template", command[3], chart, command[5], str(tmp_path / command[6])]
    done = subprocess.run(rendered, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"\bshop-server[\w-]*", TEXT):
        assert f"name: {name}\n" in done.stdout


def test_the_settings_are_ones_that_the_server_reads() -> None:
    (settings,) = (block for block in BLOCKS if "host" in block)
    assert unknown_settings(settings) == set()


@pytest.mark.parametrize("service", ["redis", "prometheus", "grafana"])
def test_the_page_says_what_runs_beside_the_server(service: str) -> None:
    assert service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert service.capitalize() in TEXT
