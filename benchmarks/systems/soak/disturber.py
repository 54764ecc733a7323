"""What may happen to a server in an hour: bundles exchanged, workers killed."""

import asyncio
import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fathom.client import AsyncClient
from fathom.errors import FathomError
from fathom.files import write_json
from fathom.runtime.manifest import MANIFEST_NAME, sealed
from fathom.runtime.manifest_file import read_manifest

HOUR_S = 3600.0
NAME = "shop"


class Disturber:
    """Exchanges the bundle of a repository and kills workers of a server, at even distances.

    ``pid``: the parent of the workers. ``kills_s``: when workers were killed, on the clock of ``time.perf_counter``.
    ``kills_newest``: instead of the oldest one, so that the others live as long as the server.
    """

    def __init__(self, pid: int, bundle: Path, repository: Path, *, kills_newest: bool = False) -> None:
        self._pid, self._bundle, self._repository = pid, bundle, repository
        self._choose = max if kills_newest else min
        self._numbers = itertools.count(2)
        self.kills_s: list[float] = []
        self.exchanged, self.errors = 0, list[str]()

    async def run(self, client: AsyncClient, reloads_per_hour: float, kills_per_hour: float) -> None:
        """Until it is cancelled."""
        due_s = time.perf_counter()
        for wait_s, kind in moments(reloads_per_hour, kills_per_hour):
            due_s += wait_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if kind == "kill":
                self.kill()
            else:
                await self.exchange(client)

    async def exchange(self, client: AsyncClient) -> None:
        """Publish a new version, and let the server serve it."""
        number = next(self._numbers)
        await asyncio.to_thread(publish_version, self._bundle, self._repository, number)
        try:
            (reloaded,) = await client.reload()
        except FathomError as error:
            self.errors.append(str(error))
            return
        self.exchanged += reloaded.version != reloaded.previous
        if reloaded.error:
            self.errors.append(reloaded.error)
        shutil.rmtree(self._repository / NAME / str(number - 2), ignore_errors=True)

    def kill(self) -> None:
        """The oldest worker, or the newest."""
        chosen = self._choose(workers_of(self._pid), key=lambda each: each.create_time())
        self.kills_s.append(time.perf_counter())
        os.kill(chosen.pid, signal.SIGKILL)


def moments(reloads_per_hour: float, kills_per_hour: float) -> Iterator[tuple[float, str]]:
    """Without an end: seconds to wait, and then "reload" or "kill", each at even distances."""
    rates = {"reload": reloads_per_hour, "kill": kills_per_hour}
    due_s = {kind: HOUR_S / rate / 2 for kind, rate in rates.items() if rate}
    now_s = 0.0
    while due_s:
        kind = min(due_s, key=lambda each: due_s[each])
        yield due_s[kind] - now_s, kind
        now_s = due_s[kind]
        due_s[kind] += HOUR_S / rates[kind]


def publish_version(bundle: Path, repository: Path, number: int) -> None:
    """A copy of a bundle under a version of its own, put where the server finds it, complete from its first moment."""
    new = repository / NAME / "new"
    shutil.copytree(bundle, new)
    manifest = read_manifest(bundle)
    source = manifest.source.model_copy(update={"commit": f"copy {number}"})
    other = sealed(manifest.model_copy(update={"source": source}))
    write_json(new / MANIFEST_NAME, other.model_dump(mode="json"))
    new.rename(repository / NAME / str(number))


def workers_of(parent: int) -> list[psutil.Process]:
    """The worker processes of a server."""
    return [each for each in psutil.Process(parent).children() if is_worker(each)]


def is_worker(process: psutil.Process) -> bool:
    """Whether a child of a server is one; False where it has just ended."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False
