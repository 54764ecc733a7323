"""Records live requests as JSON lines, so that a bundle can be certified from them; docs/operating.md has the format.

The event loop only puts what was answered into a queue; a thread writes it. What finds no room there, or cannot be
written, is counted and forgotten: recording never delays a request, nor ends the server.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fathom.runtime.query import Answer, IndexedQuery
from fathom.serving.deployment import Deployment
from fathom.serving.line_files import LineFiles, line_files

SCHEMA_VERSION = 1
KIND = "requests"
#: Requests that may wait to be written.
MOST_WAITING = 2_000
WRITE_EVERY_S, CLOSE_S = 0.2, 5.0
#: Items of an answer that are kept.
GIVEN = 10

log = logging.getLogger("fathom.serving")


class _Answered(NamedTuple):
    """An answered request, and when."""

    time_s: float
    deployment: Deployment
    query: IndexedQuery
    answer: Answer


class Recorder:
    """Writes to files of its own in a folder that others may write to as well; used from one event loop.

    ``most_bytes``: of all files in the folder, of which the oldest go first; ``writers``: as many write to it.
    ``recorded``: requests that were written.
    """

    def __init__(self, folder: Path, most_bytes: int, writers: int = 1) -> None:
        self.recorded = 0
        self._dropped = self._failed = 0
        self._files = LineFiles(folder, KIND, most_bytes, writers)
        self._waiting: deque[_Answered] = deque()
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fathom-record", daemon=True)

    @property
    def lost(self) -> int:
        """Requests that were not written: too many waited, or the folder could not be written to."""
        return self._dropped + self._failed

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def offer(self, deployment: Deployment, query: IndexedQuery, answer: Answer) -> None:
        """Note an answered request, if a certificate could cover it: routed, without filters, of known items."""
        if query.depth is not None or query.is_filtered or not len(query.items):
            return
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(_Answered(time.time(), deployment, query, answer))

    def close(self) -> None:
        """Write what still waits, and end; not for longer than ``CLOSE_S``."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closing.wait(WRITE_EVERY_S):
            self._write_waiting()
        self._write_waiting()
        self._files.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            few = [self._waiting.popleft() for _ in range(min(len(self._waiting), 100))]
            try:
                self._files.write("".join(map(_line, few)).encode())
            except Exception as error:
                self._failed += len(few)
                self._files.close()
                if not self._failing:
                    log.error("requests cannot be recorded in %s: %s", self._files.folder, error)
                self._failing = True
            else:
                self.recorded += len(few)
                self._failing = False


def recordings(folder: Path) -> Sequence[Path]:
    """The files of a folder that requests were recorded in, the oldest first."""
    return line_files(folder, KIND)


def _ids(deployment: Deployment, items: Iterable[int]) -> list[str]:
    return [deployment.catalogue.id(int(item)) for item in items]


def _line(answered: _Answered) -> str:
    time_s, deployment, query, answer = answered
    manifest, choice = deployment.bundle.manifest, answer.choice
    newest = slice(-manifest.model.max_history, None)
    line = {
        "schema_version": SCHEMA_VERSION,
        "time": round(time_s, 3),
        "bundle": deployment.name,
        "version": manifest.version,
        "content": deployment.content,
        "profile": query.profile.name,
        "depth": choice.depth,
        "reason": choice.reason.value,
        "items": _ids(deployment, query.items[newest]),
        "given": _ids(deployment, answer.indices[:GIVEN]),
    }
    if query.timestamps is not None:
        line["timestamps"] = [int(each) for each in query.timestamps[newest]]
        line["request_time"] = query.asked_s or 0
    if query.context and deployment.bundle.context is not None:
        line["context"] = deployment.bundle.context.given(query.context)
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
