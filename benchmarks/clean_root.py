"""Performs a Dockerfile without Docker: its COPY and RUN lines in folders, its command in one that cannot be written.

What stands for the image that it begins with is a folder, such as debootstrap makes. RUN has no network; pip finds
wheels in a folder. Needs Linux and root, for chroot and namespaces.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fathom.benchmarks.dockerfile import Instruction, Stage, lineage, read_stages
from fathom.errors import ConfigError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")
# $1: the root, $2: the wheels; the rest is the command.
_RUN = 'mount --bind "$2" "$1/mnt"; mount -t proc proc "$1/proc"; root=$1; shift 2; exec chroot "$root" "$@"'
# $1: the root, $2: the bundle.
_SERVE = (
    'mount --bind "$1" "$1"; mount --bind "$2" "$1/bundle"; mount -o remount,ro,bind "$1/bundle";'
    ' mount -t proc proc "$1/proc"; mount -o remount,ro,bind "$1"; root=$1; shift 2; exec chroot "$root" "$@"'
)


@dataclass
class Image:
    """A root folder and what an image says of its container."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


class CleanRoot:
    """Stages of one Dockerfile, each in a folder of its own below ``folder``."""

    def __init__(self, dockerfile: Path, *, context: Path, base: Path, wheels: Path, folder: Path) -> None:
        if os.geteuid() != 0:
            raise ConfigError("an image's steps need root, for chroot; run this as root")
        self._stages = read_stages(dockerfile)
        self._context, self._base, self._wheels, self._folder = context, base, wheels, folder
        self._made: dict[str, Image] = {}

    def build(self, target: str) -> Image:
        """Perform a stage, and first those that it needs; raises ConfigError with what a failed step printed."""
        for stage in lineage(self._stages, target):
            if stage.name not in self._made:
                self._made[stage.name] = self._perform(stage)
        return self._made[target]

    def _perform(self, stage: Stage) -> Image:
        before = self._made.get(stage.base)
        image = Image(self._folder / stage.name)
        if before:
            image.environment, image.workdir, image.user = dict(before.environment), before.workdir, before.user
            image.entrypoint, image.cmd, image.healthcheck = before.entrypoint, before.cmd, before.healthcheck
        _copy_tree(before.root if before else self._base, image.root)
        for instruction in stage.instructions:
            self._follow(instruction, image)
        return image

    def _follow(self, step: Instruction, image: Image) -> None:
        match step.name:
            case "ENV":
                image.environment |= step.settings(image.environment)
            case "WORKDIR":
                image.workdir = str(Path(image.workdir) / step.text)
                (image.root / image.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = step.text
            case "ENTRYPOINT":
                image.entrypoint, image.cmd = step.command(), []
            case "CMD":
                image.cmd = step.command()
            case "HEALTHCHECK":
                image.healthcheck = step._replace(text=step.text.removeprefix("CMD ")).command()
            case "COPY":
                self._copy(step, image)
            case "RUN":
                self._run(step, image)
            case "EXPOSE" | "LABEL":
                pass
            case other:
                raise ConfigError(f"line {step.line}: {other} cannot be performed here")

    def _copy(self, step: Instruction, image: Image) -> None:
        *sources, destination = step.words()
        origin = self.build(step.flags["from"]).root if "from" in step.flags else self._context
        for each in sources:
            source, goal = origin / each.lstrip("/"), image.root / str(Path(image.workdir) / destination).lstrip("/")
            if not source.exists():
                raise ConfigError(f"line {step.line}: there is no {each} to copy")
            if "from" in step.flags:
                _copy_tree(source, goal)
            elif source.is_dir():
                shutil.copytree(source, goal, symlinks=True, dirs_exist_ok=True, ignore=_IGNORED)
            else:
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, goal / source.name if goal.is_dir() else goal)

    def _run(self, step: Instruction, image: Image) -> None:
        given = {**image.environment, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt"}
        inside = ["sh", "-c", f'cd {image.workdir} && exec "$@"', "sh", *step.command()]
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-ec", _RUN, "sh"]
        done = subprocess.run(
            [*command, str(image.root), str(self._wheels), "env", "-i", *_assigned(given), *inside],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ConfigError(f"line {step.line}: RUN ended with {done.returncode}:\n{done.stdout[-2000:]}")


@contextmanager
def running(image: Image, bundle: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """An image's command as a container runs it: as its user, without capabilities, from a root it cannot write.

    It is process 1 of its namespace, and shares the network. The process that is given has its output and exit code;
    its child is the command.
    """
    (image.root / "bundle").mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", _SERVE, "sh"]
    inside = [*_unprivileged(image, environment), *image.entrypoint, *image.cmd]
    with subprocess.Popen(
        [*command, str(image.root), str(bundle.resolve()), *inside],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def health(image: Image, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of an image's health check, and what it prints."""
    command = ["chroot", str(image.root), *_unprivileged(image, environment), *image.healthcheck]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).strip()


def _unprivileged(image: Image, environment: Mapping[str, str]) -> list[str]:
    user, _, group = image.user.partition(":")
    rights = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    given = _assigned({**image.environment, **environment})
    return ["setpriv", f"--reuid={user}", f"--regid={group or user}", *rights, "env", "-i", *given]


def _assigned(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _copy_tree(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{source}/.", str(goal)], check=True)
