"""The audit log: who has changed, or tried to reach, what, as JSON lines; docs/security.md has the format.

It is written before the caller has its answer. It holds no history and no key; a user is a keyed hash of the id, so
that lines about the same user can be found by whoever knows the id and has the log's salt, and by nobody else.
"""

import hashlib
import hmac
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from fathom.serving.access.caller import Caller
from fathom.serving.access.principal import ROLE_OF, Role
from fathom.serving.line_files import LineFiles
from fathom.serving.logs import Seldom

SCHEMA_VERSION = 1
SALT_FILE = "salt"
KIND = "audit"

#: Statuses of calls that were refused because of who called.
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

log = Seldom("fathom.serving")


class AuditLog:
    """Used from one event loop. ``lost``: lines that could not be written."""

    def __init__(self, folder: Path, most_bytes: int, writers: int = 1) -> None:
        self._files = LineFiles(folder, KIND, most_bytes, writers)
        self._salt = b""
        self.lost = 0

    def start(self) -> None:
        """Make the folder and its salt; raises OSError."""
        self._files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._salt = _salt(self._files.folder / SALT_FILE)

    def note(self, method: str, caller: Caller | None, call: Any, code: grpc.StatusCode) -> None:
        """A call has ended: written where it was refused for who called, or its method changes something."""
        if code in REFUSALS or ROLE_OF.get(method, Role.RECOMMEND) is not Role.RECOMMEND:
            self._write(method, caller, call, code)

    def _write(self, method: str, caller: Caller | None, call: Any, code: grpc.StatusCode) -> None:
        line: dict[str, object] = {
            "schema_version": SCHEMA_VERSION,
            "time": round(time.time(), 3),
            "who": None if caller is None else caller.principal.name,
            "tenant": None if caller is None else caller.principal.tenant.name,
            "peer": call.peer(),
            "method": method,
            "status": code.name,
        }
        if caller is not None:
            line |= caller.about
            own = caller.principal.user
            user = caller.about.get("user") or (own and caller.principal.tenant.key_of(own))
            if isinstance(user, str):
                line["user"] = self.hash_of(user)
        try:
            self._files.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            self.lost += 1
            self._files.close()
            log.warning("the audit log cannot be written to: %s", error)

    def hash_of(self, user_key: str) -> str:
        """What stands for a user in the log; ``user_key``: as ``Tenant.key_of`` gives it."""
        return hmac.new(self._salt, user_key.encode(), hashlib.sha256).hexdigest()[:32]

    def close(self) -> None:
        """End the file."""
        self._files.close()


def _salt(path: Path) -> bytes:
    """The log's own random bytes, made by whoever comes first and then kept."""
    with suppress(FileExistsError):
        new = path.with_name(f".{SALT_FILE}-{os.getpid()}")
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(file, secrets.token_bytes(32))
        finally:
            os.close(file)
        try:
            os.link(new, path)  # Whole or not at all, and never in the place of another.
        finally:
            new.unlink()
    return path.read_bytes()
