"""Items in Redis or Valkey, shared by servers on several machines; as durable as Redis is configured to be."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from fathom.serving.items.contract import ItemChange, ItemFaults, ItemStore
from fathom.serving.redis_client import redis_at

PREFIX = "fathom:items"
#: Changes that are read at a time; more than one message makes, so that some are always whole.
AT_ONCE = 2_000

# A bundle is three keys: a hash from an item's id to its record, "-" where it was removed, else "+" and the bytes; a
# sorted set of ids by the number of their last change; and one of ids in the order of their bytes.
_WRITE = """
local newest = tonumber(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]) or 0
local version = math.max(newest, tonumber(ARGV[1])) + 1
for i = 2, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[2], version, ARGV[i])
    redis.call('ZADD', KEYS[3], 0, ARGV[i])
end
return version
"""
_FOUND = """
local found = {}
for _, id in ipairs(ids) do
    found[#found + 1] = {id, redis.call('ZSCORE', KEYS[2], id), redis.call('HGET', KEYS[1], id)}
end
return found
"""
_CHANGES = "local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])" + _FOUND
_PAGE = "local ids = redis.call('ZRANGEBYLEX', KEYS[3], ARGV[1], '+', 'LIMIT', 0, ARGV[2])" + _FOUND

Result = TypeVar("Result")
Row = tuple[bytes, bytes | None, bytes | None]


class RedisItems(ItemStore):
    """Items behind a redis:// URL. Opening does not connect: a server that is away comes back by itself."""

    def __init__(self, url: str) -> None:
        self._redis = redis_at(url, "catalogue")
        from redis.exceptions import OutOfMemoryError, RedisError

        self._write = self._redis.register_script(_WRITE)
        self._changes = self._redis.register_script(_CHANGES)
        self._page = self._redis.register_script(_PAGE)
        self._full = OutOfMemoryError
        self._failures = (RedisError, OSError)
        self._faults = ItemFaults()

    async def write(self, bundle: str, changes: Mapping[str, bytes | None], after: int = 0) -> int:
        arguments = [part for id, record in changes.items() for part in (id, _stored(record))]
        return int(await self._reach(self._write(keys=_keys(bundle), args=[after, *arguments])))

    async def changes(self, bundle: str, since: int) -> Sequence[ItemChange]:
        last: dict[str, ItemChange] = {}
        while True:
            rows = await self._reach(self._changes(keys=_keys(bundle), args=(since, AT_ONCE)))
            found = self._read(rows)
            whole = found
            if len(rows) == AT_ONCE and found and found[0].version < found[-1].version:
                whole = [each for each in found if each.version < found[-1].version]
            for each in whole:
                last.pop(each.id, None)
                last[each.id] = each
            if len(rows) < AT_ONCE or not whole:
                return list(last.values())
            since = whole[-1].version

    async def page(self, bundle: str, after: str, size: int) -> Sequence[ItemChange]:
        start = b"(" + after.encode() if after else b"-"
        return self._read(await self._reach(self._page(keys=_keys(bundle), args=(start, size))))

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    def _read(self, rows: Sequence[Row]) -> list[ItemChange]:
        found = [change for row in rows if (change := _change(*row)) is not None]
        if len(found) < len(rows):
            self._faults.foreign(f"{PREFIX}:{{BUNDLE}}:* in Redis")
        return found

    async def _reach(self, answer: Awaitable[Result]) -> Result:
        try:
            return await answer
        except self._full as error:
            raise self._faults.full(error) from None
        except self._failures as error:
            raise self._faults.unreachable(error) from None


def _keys(bundle: str) -> tuple[str, str, str]:
    name = f"{PREFIX}:{{{bundle}}}"
    return f"{name}:records", f"{name}:changes", f"{name}:ids"


def _stored(record: bytes | None) -> bytes:
    return b"-" if record is None else b"+" + record


def _change(id: bytes, version: bytes | None, record: bytes | None) -> ItemChange | None:
    """A change as it is stored; None for what Fathom has not written."""
    try:
        if version is None or record is None or record[:1] not in (b"-", b"+"):
            return None
        return ItemChange(id.decode(), int(version), None if record == b"-" else record[1:])
    except ValueError:
        return None
