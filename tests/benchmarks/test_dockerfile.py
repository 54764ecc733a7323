from pathlib import Path

import pytest

from fathom.benchmarks.dockerfile import Stage, lineage, read_stages
from fathom.errors import ConfigError

TEXT = """\
# syntax=docker/dockerfile:1
FROM debian:12 AS base
ENV A=1 \\
    B=two:$PATH

FROM base AS build
COPY --from=base /a /b ./there/
# a comment between
RUN one \\
    # and within
    && two
FROM base
HEALTHCHECK --interval=5s CMD ["ask", "it"]
CMD ["serve", "/bundle"]
"""


def stages(tmp_path: Path, text: str = TEXT) -> list[Stage]:
    (tmp_path / "Dockerfile").write_text(text)
    return read_stages(tmp_path / "Dockerfile")


def test_stages_have_their_names_bases_and_instructions(tmp_path: Path) -> None:
    base, build, last = stages(tmp_path)
    assert [(each.name, each.base) for each in (base, build, last)] == [
        ("base", "debian:12"),
        ("build", "base"),
        ("2", "base"),
    ]
    assert base.instructions[0].settings({"PATH": "/bin"}) == {"A": "1", "B": "two:/bin"}
    copy, run = build.instructions
    assert (copy.line, copy.flags, copy.words()) == (7, {"from": "base"}, ["/a", "/b", "./there/"])
    assert run.command() == ["/bin/sh", "-c", "one && two"]
    health, command = last.instructions
    assert (health.flags, health.text) == ({"interval": "5s"}, 'CMD ["ask", "it"]')
    assert command.command() == ["serve", "/bundle"]


def test_a_stage_comes_after_what_it_is_made_from(tmp_path: Path) -> None:
    found = stages(tmp_path)
    assert [each.name for each in lineage(found, "build")] == ["base", "build"]
    with pytest.raises(ConfigError, match="no stage is called nothing; there are base, build, 2"):
        lineage(found, "nothing")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "there is no FROM"), ("RUN true\n", ":1: RUN stands before FROM"), ("FROM\n", ":1: FROM needs one image")],
)
def test_what_is_no_dockerfile_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        stages(tmp_path, text)
