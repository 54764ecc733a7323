"""A Dockerfile's steps, performed in folders."""

import os
from pathlib import Path

import pytest

from fathom.benchmarks.clean_root import CleanRoot, Image
from fathom.errors import ConfigError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def build(folder: Path, text: str, target: str) -> Image:
    for name in ("base/etc", "context/code/__pycache__", "wheels"):
        (folder / name).mkdir(parents=True)
    (folder / "base/etc/os").write_text("clean")
    (folder / "context/code/main.py").write_text("pass")
    (folder / "context/code/__pycache__/main.pyc").write_text("old")
    (folder / "context/notes.txt").write_text("notes")
    (folder / "Dockerfile").write_text(text)
    steps = CleanRoot(
        folder / "Dockerfile",
        context=folder / "context",
        base=folder / "base",
        wheels=folder / "wheels",
        folder=folder / "stages",
    )
    return steps.build(target)


def test_a_stage_has_what_was_copied_into_it_and_what_the_image_says_of_its_container(tmp_path: Path) -> None:
    text = """\
FROM debian:12 AS base
ENV HOME=/home PATH=/opt:$PATH
WORKDIR /src
FROM base AS code
COPY code ./code
COPY notes.txt /etc/
FROM base AS last
COPY --from=code /src/code /opt/code
HEALTHCHECK CMD ["ask"]
ENTRYPOINT ["program"]
CMD ["serve"]
USER 7:8
"""
    image = build(tmp_path, text, "last")
    files = {path.relative_to(image.root).as_posix() for path in image.root.rglob("*") if path.is_file()}
    assert files == {"etc/os", "opt/code/main.py"}
    assert (image.workdir, image.user) == ("/src", "7:8")
    assert (image.entrypoint, image.cmd, image.healthcheck) == (["program"], ["serve"], ["ask"])
    assert image.environment["HOME"] == "/home"
    assert image.environment["PATH"].startswith("/opt:/usr/local/sbin:")
    assert (tmp_path / "stages/code/etc/notes.txt").exists()
    assert not (tmp_path / "base/opt").exists()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("COPY nothing.txt /etc/", "line 2: there is no nothing.txt to copy"),
        ("ADD https://example.org/x /x", "line 2: ADD cannot be performed here"),
        ('RUN ["/no/program"]', "line 2: RUN ended with "),
    ],
)
def test_a_step_that_fails_is_an_error_with_its_line(tmp_path: Path, step: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(tmp_path, f"FROM debian:12 AS only\n{step}\n", "only")
