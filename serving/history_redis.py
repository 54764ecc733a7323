"""Histories in Redis or Valkey, shared by servers on several machines; as durable as that server is told to be."""

import json
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from fathom.errors import ConfigError, MissingExtraError, UnavailableError
from fathom.serving.history import SECONDS_A_DAY, Event, Retention

PREFIX = "fathom:history"
MOST_CONNECTIONS = 32
TIMEOUT_S = 1.0
ARRIVAL_DIGITS = 15

# A user is two keys: a hash from event id to member, with the number of arrivals under the empty id, and a sorted set
# of members by timestamp. A member is the arrival, so that equal timestamps sort by it, and JSON of both ids.
_APPEND = """
local ids, members = KEYS[1], KEYS[2]
local oldest, most, seconds = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local added = 0
for i = 4, #ARGV, 3 do
    local event, timestamp, both = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if redis.call('HEXISTS', ids, event) == 0 then
        local member = string.format('%015d', redis.call('HINCRBY', ids, '', 1)) .. both
        redis.call('HSET', ids, event, member)
        redis.call('ZADD', members, timestamp, member)
        added = added + 1
    end
end
local function forget(found)
    for _, member in ipairs(found) do
        redis.call('ZREM', members, member)
        redis.call('HDEL', ids, cjson.decode(string.sub(member, 16))[1])
    end
end
forget(redis.call('ZRANGEBYSCORE', members, '-inf', '(' .. oldest))
forget(redis.call('ZRANGE', members, 0, -(most + 1)))
local newest = redis.call('ZRANGE', members, -1, -1, 'WITHSCORES')[2]
if not newest then
    redis.call('DEL', ids)
elseif seconds > 0 then
    redis.call('EXPIREAT', ids, newest + seconds)
    redis.call('EXPIREAT', members, newest + seconds)
end
return added
"""
_DELETE = """
local count = redis.call('ZCARD', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[2])
return count
"""

Result = TypeVar("Result")


class RedisHistory:
    """Histories behind a redis:// URL. Opening does not connect: a server that is away comes back by itself."""

    def __init__(self, url: str, retention: Retention) -> None:
        try:
            from redis import asyncio as redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ImportError:
            raise MissingExtraError("redis", "redis") from None
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=MOST_CONNECTIONS,
                timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                # A connection that the server has closed in the meantime is found only when it is used.
                retry=Retry(NoBackoff(), 1),
                decode_responses=True,
            )
        except ValueError as error:
            raise ConfigError(f"history: not a URL of a Redis server: {error}") from None
        self._redis: Any = redis.Redis.from_pool(pool)
        self._append = self._redis.register_script(_APPEND)
        self._delete = self._redis.register_script(_DELETE)
        self._failures = (RedisError, OSError)
        self._retention = retention

    async def append(self, user_id: str, events: Sequence[Event]) -> int:
        """See HistoryStore."""
        retention = self._retention
        arguments: list[Any] = [retention.oldest, retention.max_events, (retention.max_age_days or 0) * SECONDS_A_DAY]
        for event_id, item_id, timestamp in events:
            arguments += event_id, timestamp, json.dumps((event_id, item_id), ensure_ascii=False)
        return await self._reach(self._append(keys=_keys(user_id), args=arguments))

    async def read(self, user_id: str) -> list[Event]:
        """See HistoryStore."""
        _, members = _keys(user_id)
        newest = self._redis.zrange(
            members,
            "+inf",
            self._retention.oldest,
            desc=True,
            byscore=True,
            withscores=True,
            offset=0,
            num=self._retention.max_events,
        )
        found = await self._reach(newest)
        pairs = [(json.loads(member[ARRIVAL_DIGITS:]), score) for member, score in reversed(found)]
        return [Event(event_id, item_id, int(score)) for (event_id, item_id), score in pairs]

    async def delete(self, user_id: str) -> int:
        """See HistoryStore."""
        return await self._reach(self._delete(keys=_keys(user_id)))

    async def close(self) -> None:
        """See HistoryStore."""
        await self._redis.aclose(close_connection_pool=True)

    async def _reach(self, answer: Awaitable[Result]) -> Result:
        try:
            return await answer
        except self._failures as error:
            raise UnavailableError(f"histories cannot be reached ({error}); send item_ids, or try again") from None


def _keys(user_id: str) -> tuple[str, str]:
    # In braces, so that a cluster keeps both keys of a user in one place.
    return f"{PREFIX}:{{{user_id}}}:ids", f"{PREFIX}:{{{user_id}}}:members"
