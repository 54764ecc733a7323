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
    """

    def __init__(self, pid: int, bundle: Path, repository: Path) -> None:
        self._pid, self._bundle, self._repository = pid, bundle, repository
        self._numbers = itertools.count(2)
        self.kills_s: list[float] = []
        self.exchanged, self.errors = 0, list[str]()

    async def run(self, client: AsyncClient, reloads_per_hour: float, kills_per_hour: float) -> None:
        """Until it is cancelled."""
        for wait_s, kind in moments(reloads_per_hour, kills_per_hour):
            await asyncio.sleep(wait_s)
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
        """The oldest worker."""
        oldest = min(workers_of(self._pid), key=lambda each: each.create_time())
        self.kills_s.append(time.perf_counter())
        os.kill(oldest.pid, signal.SIGKILL)


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
    children = psutil.Process(parent).children()
    return [each for each in children if "spawn_main" in " ".join(_command(each))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # It has just ended.
        return []
