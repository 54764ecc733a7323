"""The documents tell the truth: links lead somewhere, files exist, commands and options are those of the program."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from fathom.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    )
)
#: A record of what was tried: it names files as they were called then.
HISTORY = "docs/log.md"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:src/fathom|[a-z_]+)/[\w./-]+\.(?:py|json|md|proto|onnx|toml))`")
#: Paths of a bundle, of stored runs and of what is built that look like ours.
ELSEWHERE = {
    "build/bench/results.md",
    "selector/certificate.json",
    "selector/complexity.json",
    "results/quality/DATASET/ARM-seed-S.json",
}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ +(.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def wrong_links(page: Path) -> list[str]:
    wrong = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = page if not name else page.parent / name
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    assert wrong_links(ROOT / page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY])
def test_every_file_that_is_named_exists(page: str) -> None:
    named = [path for path in FILE.findall(text_of(page)) if path.split("/")[0] in FOLDERS]
    assert [path for path in named if not (ROOT / path).exists() and path not in ELSEWHERE] == []


def commands(page: str) -> list[str]:
    """The lines of a page's blocks that call fathom or make."""
    lines = re.findall(r"^(?: {4,}|)((?:\.venv/bin/)?(?:fathom|make) [^\n]*)$", text_of(page), flags=re.MULTILINE)
    return [line for line in lines if not line.startswith("make a")]


def unknown(line: str) -> list[str]:
    """What of a command line the program does not know: a command, an option, a target."""
    words = shlex.split(line.split("  #")[0].split(" #")[0])
    program, *rest = words
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        return [word for word in rest if "=" not in word and word not in targets]
    found, names = [], rest[0].split("|") if rest else []
    for name in names:
        command: Any = typer.main.get_command(app)
        following = [name, *rest[1:]]
        while hasattr(command, "commands") and following and not following[0].startswith("-"):
            step = following.pop(0)
            if step not in command.commands:
                return [*found, step]
            command = command.commands[step]
        params = command.get_params(command.context_class(command))
        options = {option for param in params for option in (*param.opts, *param.secondary_opts)}
        given = {word.split("=")[0] for word in following if word.startswith("-") and len(word) > 1}
        found += sorted(given - options - {"--help"})
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page != HISTORY])
def test_every_command_and_option_that_is_shown_is_one(page: str) -> None:
    shown = commands(page)
    assert {line: wrong for line in shown if (wrong := unknown(line))} == {}
    if page == "README.md":
        assert len(shown) > 15


def test_what_is_wrong_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[one](#a-head) [two](#nowhere) [three](missing.md) [four](https://example.org)\n")
    assert wrong_links(page) == ["#nowhere", "missing.md"]
    assert unknown("fathom srve x") == ["srve"]
    assert unknown("fathom bundle slice x --profil y --out z") == ["--profil"]
    assert unknown("make everything") == ["everything"]
    assert unknown("fathom train|evaluate --help") == []
