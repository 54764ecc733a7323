"""On an installation without extras every command works, or names in one line the extra that it needs."""

import subprocess
import sys
import tomllib
from pathlib import Path

from fathom.distribution import EXTRA_OF

# Runs commands (one per line of standard input) with every optional module hidden, as if it were not installed.
PLAIN = """
import sys, traceback
from fathom.distribution import EXTRA_OF

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in EXTRA_OF else self.finder.find_spec(name, *more)

sys.meta_path[:] = map(Hiding, sys.meta_path)
from fathom.cli import main

for line in sys.stdin:
    sys.argv = ["fathom", *line.rstrip("\\n").split("\\t")]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except Exception:
        code = "traceback"
        traceback.print_exc()
    sys.stdout.flush()
    print("ended with", code, file=sys.stderr, flush=True)
"""


def run_plain(cwd: Path, *commands: list[str]) -> list[tuple[str, str]]:
    """For each command how it ended, and what it said on standard error."""
    lines = "".join("\t".join(command) + "\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], input=lines, capture_output=True, text=True, timeout=120, check=True, cwd=cwd
    )
    *said, rest = done.stderr.split("ended with ")
    codes = [each.partition("\n")[0] for each in [*said[1:], rest]]
    texts = [said[0], *(each.partition("\n")[2] for each in said[1:])]
    return list(zip(codes, texts, strict=True))


def test_commands_without_their_extra_name_it_and_write_nothing(synthetic_bundle: Path, tmp_path: Path) -> None:
    bundle, out = str(synthetic_bundle), str(tmp_path / "out")
    convert = ["bundle", "convert", bundle, "--out", out, "--to"]
    dataset = tmp_path / "data"
    dataset.mkdir()
    (tmp_path / "clicks.csv").write_text("user_id,item_id\nu,i\n")
    commands = [
        ["bundle", "index", bundle, "--data", str(dataset), "--out", out],
        [*convert, "cuda"],
        [*convert, "executorch", "--checkpoint", "nowhere"],
        [*convert, "tensorrt"],
        [*convert, "tensorrt-rtx"],
        ["history", "import", str(dataset), "--to", f"sqlite:{out}"],
        ["data", "prepare", "clicks.csv", "--out", out],
        ["train", str(dataset), "--out", out],
        ["evaluate", "nowhere", "--data", str(dataset)],
        ["rank", "nowhere", "--data", str(dataset), "--out", out],
        ["heal", "nowhere", "plan.json", "--data", str(dataset), "--out", out],
        ["export", "nowhere", "--data", str(dataset), "--out", out],
        ["build", "clicks.csv", "--out", out],
        ["loadtest", "--trace", str(dataset)],
        ["console", "--port", "0"],
        ["demo", bundle, "--data", str(dataset)],
    ]
    for command, (code, text) in zip(commands, run_plain(tmp_path, *commands), strict=True):
        assert code == "2", (command, text)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (command, text)
        assert "Traceback" not in text
        assert not Path(out).exists(), command


def test_what_needs_no_extra_works_without_any(synthetic_bundle: Path, tmp_path: Path) -> None:
    bundle = str(synthetic_bundle)
    commands = [
        ["bundle", "inspect", bundle],
        ["bundle", "quality", bundle],
        ["bundle", "verify", bundle],
        ["bundle", "slice", bundle, "--profile", "mobile", "--any-precision", "--out", "small"],
        ["bundle", "convert", bundle, "--to", "ort", "--out", "ort"],
        ["bundle", "convert", bundle, "--to", "triton", "--out", "triton"],
        ["profiles", "list"],
        ["profiles", "show", "cloud"],
        ["doctor"],
        ["--version"],
    ]
    for command, (code, text) in zip(commands, run_plain(tmp_path, *commands), strict=True):
        assert code == "0", (command, text)


def test_every_extra_is_named_for_some_module_and_no_other() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(EXTRA_OF.values()) == set(project["optional-dependencies"]) - {"dev"}
