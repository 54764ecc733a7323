"""Structured logs: one JSON object (or one line of text) per record on stderr, written by a thread of their own."""

import json
import logging
import math
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Literal, TextIO

ROOT = "fathom"
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...}``; ``extra={"fields": {...}}`` adds its own keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class _KeepRecord(QueueHandler):
    """Hands the record over unformatted, so that formatting happens in the listener's thread too."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


@contextmanager
def logging_to(
    stream: TextIO | None = None, *, log_format: Literal["json", "text"] = "json", level: str = "info"
) -> Iterator[None]:
    """Send the records of ``fathom`` to a stream (stderr when None) for the length of the block."""
    output = logging.StreamHandler(stream or sys.stderr)
    output.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(TEXT_FORMAT))
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(records, output)
    handler = _KeepRecord(records)
    logger = logging.getLogger(ROOT)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    listener.start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        listener.stop()


class Seldom:
    """Warnings that any number of requests may cause: each is logged at most once in ``every_s`` seconds."""

    def __init__(self, name: str, every_s: float = 60.0) -> None:
        self._log = logging.getLogger(name)
        self._every_s = every_s
        self._next_s: dict[str, float] = {}

    def warning(self, text: str, *arguments: object) -> None:
        """Log it, unless the same text (whatever its arguments) was logged just now."""
        now_s = time.monotonic()
        if now_s >= self._next_s.get(text, -math.inf):
            self._next_s[text] = now_s + self._every_s
            self._log.warning(text, *arguments)
