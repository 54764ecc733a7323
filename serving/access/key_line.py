"""Adds a key to an access file, and leaves everything else in the file as its owner wrote it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fathom.errors import ConfigError
from fathom.files import new_file
from fathom.serving.access.schema import read_access

_KEYS = re.compile(r"^keys:[ \t]*(#.*)?$", re.MULTILINE)
_ITEM = re.compile(r"\n(?:[ \t]*(?:#.*)?\n)*([ \t]*)- ")


def key_line(
    name: str,
    sha256: str,
    roles: Sequence[str],
    *,
    tenant: str = "",
    rate: float | None = None,
    expires: str | None = None,
) -> str:
    """An item of the list ``keys``, in one line of YAML."""
    parts = {"name": name, "sha256": sha256, "roles": [role.strip() for role in roles]}
    more = {"tenant": tenant or None, "rate": rate, "expires": expires}
    given = parts | {key: value for key, value in more.items() if value is not None}
    # JSON is YAML; a date is one without quotes only.
    fields = [f"{key}: {value if key == 'expires' else json.dumps(value)}" for key, value in given.items()]
    return f"- {{{', '.join(fields)}}}"


def add_key(path: Path, line: str) -> None:
    """Add an item to the list ``keys`` of an access file, which is made if it is missing.

    Raises ConfigError where the file would then not be one, and leaves it as it was.
    """
    before = path.read_text() if path.exists() else ""
    found = _KEYS.search(before)
    if found is None:
        after = f"{before.rstrip()}\n\nkeys:\n  {line}\n".lstrip()
    else:
        item = _ITEM.match(before, found.end())
        after = f"{before[: found.end()]}\n{item[1] if item else '  '}{line}{before[found.end() :]}"
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with new_file(path) as trial:
        trial.write_text(after)
        try:
            read_access(trial)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(trial), str(path))) from None
    path.chmod(mode)
