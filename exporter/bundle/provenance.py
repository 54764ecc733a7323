"""Which commit of Fathom is running."""

import subprocess
from pathlib import Path


def fathom_commit() -> str | None:
    """The commit of this source tree, with ``+changes`` when tracked files differ from it; None when installed.

    What ``results/`` holds is output, not source, and does not count as a change.
    """
    # An installed Fathom may lie inside somebody else's repository: only tracked files prove that it is ours.
    if _git("ls-files", "__init__.py") != "__init__.py":
        return None
    head = _git("rev-parse", "HEAD")
    if not head:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results")
    return head + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
