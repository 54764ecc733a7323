"""Servers behind one address: a balancer that spreads connections, as most do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest
from callers import calling

from fathom.serving.transport import options

LocalServer = Callable[..., AbstractAsyncContextManager[Any]]
IDS = [f"item-{number}" for number in range(1, 40)]


@asynccontextmanager
async def balanced(servers: list[str]) -> AsyncIterator[str]:
    """The address of a balancer that gives each connection to the next of the servers."""
    numbers = count()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = servers[next(numbers) % len(servers)].rpartition(":")
        theirs, ours = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, ours), copy(theirs, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as balancer:
        yield f"127.0.0.1:{balancer.sockets[0].getsockname()[1]}"


def answered(local: Any) -> float:
    found = local.server._metrics.registry.get_sample_value(
        "fathom_calls_total", {"method": "Recommend", "status": "OK"}
    )
    return float(found or 0)


async def test_a_new_server_gets_its_share_and_callers_see_no_error(
    local: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "AGE_S", 1.0)
    async with local(metrics_port=0) as old, local(metrics_port=0) as new:
        servers = [old.info.address]
        async with balanced(servers) as address, calling(address, IDS, callers=16, go_on=True, again=True) as found:
            await found.reach(100)
            assert answered(new) == 0
            servers.append(new.info.address)
            async with asyncio.timeout(30):
                while answered(new) < 100:
                    await asyncio.sleep(0.01)
        assert set(found.statuses) == {"OK"}, found
