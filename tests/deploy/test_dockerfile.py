"""The Dockerfile keeps the rules of images that are safe and can be built again."""

import re
import subprocess
from pathlib import Path

import pytest
from deploy_tools import DEPLOY, ROOT, tool

from fathom.benchmarks.dockerfile import Instruction, lineage, read_stages

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
TARGETS = ("cpu", "gpu")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|HISTORY", re.IGNORECASE)


def broken_rules(path: Path, target: str) -> list[str]:
    """What is wrong with a target of a Dockerfile, in words."""
    stages = read_stages(path)
    names = {stage.name for stage in stages}
    everything = [each for stage in stages for each in stage.instructions]
    inside = [each for stage in lineage(stages, target) for each in stage.instructions]
    last: dict[str, Instruction] = {each.name: each for each in inside}
    user = last["USER"].text if "USER" in last else "root"
    rules = {
        "an image without a digest": all(
            s.base in names or re.search(r":.+@sha256:[0-9a-f]{64}$", s.base) for s in stages
        ),
        "ADD": all(each.name != "ADD" for each in everything),
        "a user who is not a number, or root": re.fullmatch(r"[1-9]\d+:[1-9]\d+", user) is not None,
        "a secret in ENV or ARG": not any(
            SECRET.search(each.text) for each in everything if each.name in ("ENV", "ARG")
        ),
        "a command for a shell": all(last[name].is_exec_form() for name in ("ENTRYPOINT", "CMD")),
        "no health check": "HEALTHCHECK" in last,
        "pip without hashes": all(
            "--require-hashes" in part or "--no-index" in part
            for each in everything
            if each.name == "RUN"
            for part in re.findall(r"pip (?:--python \S+ )?install [^&]*", each.text)
        ),
        "packages of a stage that installs are not copied": any(each.flags.get("from") for each in inside),
    }
    return [what for what, kept in rules.items() if not kept]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_keeps_the_rules(target: str) -> None:
    assert broken_rules(DOCKERFILE, target) == []


def test_what_breaks_a_rule_would_be_noticed(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(
        "FROM python:3.11\nARG API_TOKEN\nADD https://example.org/x /x\nRUN pip install numpy\n"
        "ENTRYPOINT fathom\nCMD serve\n"
    )
    assert len(broken_rules(bad, "0")) == 8


def test_the_default_target_is_the_server_for_cpus() -> None:
    assert read_stages(DOCKERFILE)[-1].name == "cpu"


def test_both_targets_are_built_alike_but_for_their_packages_and_the_driver() -> None:
    stages = {stage.name: stage for stage in read_stages(DOCKERFILE)}

    def instructions(name: str, target: str) -> list[tuple[str, str]]:
        return [
            (each.name, each.text.replace(target, "TARGET"))
            for each in stages[name].instructions
            if not (each.name == "ENV" and "NVIDIA" in each.text)
        ]

    for stage in ("{}-packages", "{}"):
        assert instructions(stage.format("cpu"), "cpu") == instructions(stage.format("gpu"), "gpu") != []


def test_nothing_in_the_dockerfile_is_for_one_platform_only() -> None:
    """The target for CPUs is built for each platform from the same lines, by the builder's own choice of the base."""
    for stage in read_stages(DOCKERFILE):
        for each in stage.instructions:
            assert "platform" not in each.flags
            assert not re.search(r"x86_64|aarch64|amd64|arm64|TARGETARCH", each.text)


def test_every_file_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    lines = Path(f"{DOCKERFILE}.dockerignore").read_text().split()
    sent = {line[1:] for line in lines if line.startswith("!")}
    for stage in read_stages(DOCKERFILE):
        for each in stage.instructions:
            if each.name == "COPY" and "from" not in each.flags:
                for source in each.words()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(source == name or source.startswith(f"{name}/") for name in sent), source


def test_every_folder_of_the_package_is_copied() -> None:
    copied = {
        source
        for stage in read_stages(DOCKERFILE)
        for each in stage.instructions
        if each.name == "COPY"
        for source in each.words()[:-1]
    }
    assert {path.name for path in (ROOT / "src" / "fathom").iterdir() if path.is_symlink()} <= copied


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
