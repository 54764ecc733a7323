"""The steps of deploy/docker/Dockerfile without Docker: size, user, time from start to ready, health, end.

A Debian of debootstrap with this Python in /usr/local stands for the official image, which is made in the same way.
Needs root, debootstrap and the package registries.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from fathom.benchmarks.clean_root import CleanRoot, Image, health, running
from fathom.benchmarks.ports import free_port
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import catalogue_ids
from fathom.errors import ConfigError, UnavailableError

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
SUITE = "bookworm"
#: What Python's own modules link to, as in the official image.
PACKAGES = (
    "ca-certificates,netbase,tzdata,libbz2-1.0,libexpat1,libffi8,libgdbm6,liblzma5,libncursesw6,libreadline8,"
    "libsqlite3-0,libssl3,libuuid1,zlib1g"
)
#: What Debian's slim images leave out, and what apt has fetched.
LEFT_OUT = (
    *(f"usr/share/{name}" for name in ("doc", "groff", "info", "linda", "lintian", "locale", "man")),
    "var/cache/apt",
    "var/lib/apt/lists",
)
END_S = 60


def make_base(folder: Path) -> None:
    """A Debian without Python; raises ConfigError without debootstrap."""
    if not shutil.which("debootstrap"):
        raise ConfigError("debootstrap is not installed, and makes the base; install it, or give --base FOLDER")
    # In a mount namespace of its own, so that what it mounts is gone when it ends.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"debootstrap failed: {(done.stdout + done.stderr)[-500:]}")
    for each in LEFT_OUT:
        shutil.rmtree(folder / each, ignore_errors=True)


def add_python(root: Path) -> None:
    """Put the Python that runs this into ``/usr/local``, without what was installed for it."""
    version, prefix, local = (
        f"python{sys.version_info[0]}.{sys.version_info[1]}",
        Path(sys.base_prefix),
        root / "usr/local",
    )
    library = Path("lib") / version
    left_out = shutil.ignore_patterns("__pycache__", "site-packages", "test", "tests", "idlelib", "config-*", "*.a")
    shutil.copytree(prefix / library, local / library, symlinks=True, ignore=left_out)
    (local / library / "site-packages").mkdir()
    for shared in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, local / "lib", follow_symlinks=False)
    shutil.copy2(prefix / "bin" / version, local / "bin" / version)
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(version)
    subprocess.run(["chroot", str(root), "/sbin/ldconfig"], check=True)


def fetch_wheels(folder: Path) -> None:
    """What the image's steps install, checked against the hashes; raises ConfigError where it cannot be had."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    files = [word for name in ("build", "cpu") for word in ("-r", str(DOCKER / f"requirements-{name}.txt"))]
    done = subprocess.run([*pip, "--dest", str(folder), *files], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"pip cannot download the image's packages: {done.stderr[-500:]}")


def size(root: Path) -> tuple[float, int]:
    """Megabytes (10^6 bytes) and number of files below a folder; hard links count once."""
    found = [path.lstat() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    sizes = {(each.st_dev, each.st_ino): each.st_size for each in found}
    return round(sum(sizes.values()) / 1e6, 1), len(sizes)


def measure_container(image: Image, bundle: Path) -> dict[str, Any]:
    """Start the image's command, ask its health check before and while it serves, and end it with SIGTERM."""
    # Only loopback, and its other settings are those of the image.
    given = {"FATHOM_HOST": "127.0.0.1", "FATHOM_PORT": "0", "FATHOM_METRICS_PORT": str(free_port())}
    before, _ = health(image, given)
    begin = time.perf_counter()
    with running(image, bundle, given) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        ready_s = time.perf_counter() - begin
        if not ready.startswith("ready on "):
            process.kill()
            raise UnavailableError(f"the container did not start: {process.communicate()[1][-1000:]}")
        code, word = health(image, given)
        (inside,) = psutil.Process(process.pid).children()
        found = {
            "ready_s": round(ready_s, 3),
            "user": f"{inside.uids().effective}:{inside.gids().effective}",
            "capabilities": _capabilities(inside.pid),
            "memory_mb": round(inside.memory_info().rss / 2**20, 1),
            "health_before": before,
            "health": code,
            "health_says": word,
        }
        inside.terminate()
        found["exit_code"] = process.wait(END_S)
    return found


def _capabilities(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("CapEff"))


def measure(options: Namespace) -> Iterator[Run]:
    """One build and one start."""
    catalogue_ids(options.bundle)  # A bundle that cannot be opened is an error now, not after minutes.
    with tempfile.TemporaryDirectory(prefix="fathom-image-") as temporary:
        folder = Path(temporary)
        base, wheels = options.base or folder / "base", folder / "wheels"
        if not options.base:
            make_base(base)
        fetch_wheels(wheels)
        (folder / "start").mkdir()
        subprocess.run(["cp", "-a", f"{base}/.", str(folder / "start")], check=True)
        add_python(folder / "start")
        steps = CleanRoot(
            DOCKER / "Dockerfile", context=ROOT, base=folder / "start", wheels=wheels, folder=folder / "stages"
        )
        begin = time.perf_counter()
        image = steps.build("cpu")
        build_s = time.perf_counter() - begin
        (base_mb, base_files), (mb, files) = size(folder / "start"), size(image.root)
        result = {
            "base_mb": base_mb,
            "added_mb": round(mb - base_mb, 1),
            "added_files": files - base_files,
            "build_s": round(build_s, 1),
            "components": len(json.loads((image.root / "opt/fathom/sbom.cdx.json").read_bytes())["components"]),
            "container": measure_container(image, options.bundle),
        }
    yield Run({"bundle": options.bundle.name, "target": "cpu", "base": f"debootstrap {SUITE}"}, result)


def render(run: StoredRun) -> str:
    """A heading and a few sentences."""
    result: Mapping[str, Any] = run["result"]
    container = result["container"]
    return (
        "## The server in an image\n\n"
        f"The Dockerfile's steps for the CPU server, performed in a clean Debian without Docker, add"
        f" {result['added_mb']:.0f} MB in {result['added_files']:,} files ({result['components']} packages in the SBOM)"
        f" to a base of {result['base_mb']:.0f} MB, which stands for the official one. From a root that cannot be"
        f" written, as user {container['user']} and without capabilities, the server is ready after"
        f" {container['ready_s']:.2f} s with {container['memory_mb']:.0f} MB; its health check then says"
        f" `{container['health_says']}` (exit code {container['health']}; {container['health_before']} before the"
        f" start), and SIGTERM ends it with exit code {container['exit_code']}."
    )


BENCHMARK = Benchmark(
    __doc__,
    "4 min, root, debootstrap; fetches about 150 MB",
    {"bundle": Path, "--base": None},
    measure,
    of_runs(render, "image"),
)
