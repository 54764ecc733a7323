"""Commands that serve until they are told to end, and what they answer over HTTP."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Started:
    """A program that has said where it is."""

    told: dict[str, Any]
    log: Path

    def ask(self, path: str, *, method: str = "GET", body: object = None, **headers: str) -> Answer:
        """One HTTP request; ``headers`` with ``_`` for ``-``. A body that is no text is sent as JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, str):
            body, method = json.dumps(body), "POST"
            named.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection(urlsplit(self.told["url"]).netloc, timeout=20)
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


@contextmanager
def running(log: Path, *arguments: str, **environment: str) -> Iterator[Started]:
    """A command of ours that prints one line of JSON when it is ready; it is told to end at the end."""
    command = [sys.executable, "-m", "fathom", *arguments, "--json"]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | environment
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line, log.read_text()
            yield Started(json.loads(line), log)
        finally:
            process.terminate()
