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
from typing import Protocol

import grpc

from fathom.serving.access.bucket import Bucket, take_all
from fathom.serving.access.caller import Caller
from fathom.serving.access.principal import ROLE_OF, Role
from fathom.serving.line_files import LineFiles
from fathom.serving.logs import Seldom

SCHEMA_VERSION = 1
SALT_FILE = "salt"
KIND, REFUSED_KIND = "audit", "refused"
#: Lines about refusals in a second; further ones are counted in the next line.
MOST_REFUSALS = 50

#: Statuses of calls that were refused because of who called.
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Peer(Protocol):
    """A call, as far as the log wants to know it."""

    def peer(self) -> str:
        """The caller's address."""


log = Seldom("fathom.serving")


class AuditLog:
    """Used from one event loop. ``lost``: lines that could not be written.

    Refusals have files and room of their own, and at most MOST_REFUSALS lines a second: whoever has no key must not be
    able to push out what others have done.
    """

    def __init__(self, folder: Path, most_bytes: int, writers: int = 1) -> None:
        self._changes = LineFiles(folder, KIND, most_bytes * 3 // 4, writers)
        self._refusals = LineFiles(folder, REFUSED_KIND, most_bytes // 4, writers)
        self._folder = folder
        self._salt = b""
        self._limit = Bucket(MOST_REFUSALS, MOST_REFUSALS)
        self._left_out = 0
        self.lost = 0

    def start(self) -> None:
        """Make the folder and its salt; raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._salt = _salt(self._folder / SALT_FILE)

    def note(self, method: str, caller: Caller | None, call: Peer, code: grpc.StatusCode) -> None:
        """A call has ended: written where it, or a part of it, was refused for who called, or it changes something."""
        refused = code in REFUSALS or (caller is not None and "refused_parts" in caller.about)
        if not refused and ROLE_OF.get(method, Role.RECOMMEND) is Role.RECOMMEND:
            return
        if refused and take_all([self._limit], 1, time.monotonic()):
            self._left_out += 1
            return
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
            line |= self._about(caller)
        if refused and self._left_out:
            line["left_out_before"], self._left_out = self._left_out, 0
        self._write(self._refusals if refused else self._changes, line)

    def _about(self, caller: Caller) -> dict[str, object]:
        """What is known of what a call was about, with a hash in the place of the user."""
        own = caller.principal.user
        user = caller.about.get("user") or (own and caller.principal.tenant.key_of(own))
        return {**caller.about, "user": self.hash_of(user)} if isinstance(user, str) else caller.about

    def _write(self, files: LineFiles, line: dict[str, object]) -> None:
        try:
            files.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            self.lost += 1
            files.close()
            log.warning("the audit log cannot be written to: %s", error)

    def hash_of(self, user_key: str) -> str:
        """What stands for a user in the log; ``user_key``: as ``Tenant.key_of`` gives it."""
        return hmac.new(self._salt, user_key.encode(), hashlib.sha256).hexdigest()[:32]

    def close(self) -> None:
        """End the files."""
        self._changes.close()
        self._refusals.close()


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
