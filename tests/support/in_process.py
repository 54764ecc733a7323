"""Commands in the test's own process: the same code, streams and exit codes without the seconds of a start."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from fathom.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def fathom(*arguments: str | Path, code: int = 0) -> Ran:
    """Run a command as the program does; it must end with this exit code."""
    stdout, stderr, ended = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["fathom", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            ended = int(end.code or 0)
    assert ended == code, stdout.getvalue() + stderr.getvalue()
    return Ran(ended, stdout.getvalue(), stderr.getvalue())
