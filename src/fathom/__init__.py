"""Fathom: a recommender runtime that chooses its own depth."""

__version__ = "0.1.0"

#: What installs it. On the package index, `fathom` itself is another project.
DISTRIBUTION = "fathom-recommender"


def installing(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
