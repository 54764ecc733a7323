"""Histories in Redis or Valkey, shared by servers on several machines; as durable as Redis is configured to be."""

import json
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from fathom.serving.history import contract
from fathom.serving.history.contract import PAIRS_AT_ONCE, Appended, HistoryStore, Pair, StoredEvent
from fathom.serving.redis_client import redis_at

PREFIX, PAIRS = "fathom:history", "fathom:pairs"
IDS, MEMBERS = ":ids", ":members"
SUMS, CHANGES = ":sums", ":changes"
ARRIVAL_DIGITS = 15
# What Redis says where a key holds something that Fathom has not written.
_FOREIGN = ("WRONGTYPE", "hash value is not an integer", "would overflow")

# A user is two keys: a hash from event id to member, with the number of arrivals under the empty id, and a sorted set
# of members by timestamp. A member is the arrival, so that equal timestamps sort by it, and JSON of both ids and the
# type, if there is one. Of a deleted user a third key is left for a while: a tombstone under the digest of the id,
# "DELETED-AT LAST". A bundle's pairs are a hash from JSON of both ids to their sum, and a sorted set of that JSON by
# the pair's change.
_COMMON = """
local function drop(ids, members, found)
    for _, member in ipairs(found) do
        redis.call('ZREM', members, member)
        local is_json, texts = pcall(cjson.decode, string.sub(member, 16))
        if is_json and type(texts) == 'table' and type(texts[1]) == 'string' and texts[1] ~= '' then
            redis.pcall('HDEL', ids, texts[1])
        end
    end
end
local function trim(ids, members, oldest, latest, most, seconds)
    drop(ids, members, redis.call('ZRANGEBYSCORE', members, '-inf', '(' .. oldest))
    local excess = redis.call('ZCARD', members) - most
    if excess > 0 then
        local ahead = redis.call('ZRANGEBYSCORE', members, '(' .. latest, '+inf', 'LIMIT', 0, excess)
        drop(ids, members, ahead)
        excess = excess - #ahead
    end
    if excess > 0 then
        drop(ids, members, redis.call('ZRANGE', members, 0, excess - 1))
    end
    local newest = redis.call('ZREVRANGEBYSCORE', members, latest, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
    for _, key in ipairs({ids, members}) do
        if redis.call('EXISTS', members) == 0 then
            redis.call('DEL', key)
        elseif seconds == 0 then
            redis.call('PERSIST', key)
        elseif newest then
            redis.call('EXPIREAT', key, math.floor(newest) + seconds)
        end
    end
end
local function last_before(tombstone, now, seconds)
    local found = redis.pcall('GET', tombstone)
    local at, last = string.match(type(found) == 'string' and found or '', '^(%d+) (%d+)$')
    return at and now < at + seconds and tonumber(last) or -1
end
"""
_APPEND = (
    _COMMON
    + """
local ids, members, tombstone = KEYS[1], KEYS[2], KEYS[3]
local oldest, latest, most, seconds = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local last = last_before(tombstone, tonumber(ARGV[5]), tonumber(ARGV[6]))
local known, old, deleted, new = 0, 0, 0, {}
for i = 7, #ARGV, 3 do
    local event, timestamp, texts = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
    if timestamp <= last then
        deleted = deleted + 1
    elseif timestamp < tonumber(oldest) then
        old = old + 1
    else
        local held = redis.call('HGET', ids, event)
        local at = held and tonumber(redis.call('ZSCORE', members, held) or '-inf')
        if held and at >= tonumber(oldest) and at <= tonumber(latest) then
            known = known + 1
        else
            if held then
                redis.call('ZREM', members, held)
            end
            local member = string.format('%015d', redis.call('HINCRBY', ids, '', 1)) .. texts
            redis.call('HSET', ids, event, member)
            redis.call('ZADD', members, ARGV[i + 1], member)
            new[#new + 1] = member
        end
    end
end
trim(ids, members, oldest, latest, most, seconds)
local added = 0
for _, member in ipairs(new) do
    if redis.call('ZSCORE', members, member) then
        added = added + 1
    end
end
return {added, known, old + #new - added, deleted}
"""
)
# Whatever lies under the keys goes, also what is not Fathom's.
_DELETE = (
    _COMMON
    + """
local ids, members, tombstone = KEYS[1], KEYS[2], KEYS[3]
local now, latest, seconds = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local count = redis.pcall('ZCARD', members)
local newest = redis.pcall('ZREVRANGEBYSCORE', members, latest, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local last = math.max(now, tonumber(newest) or 0, last_before(tombstone, now, seconds))
redis.call('DEL', ids, members)
redis.call('SET', tombstone, string.format('%d %d', now, last), 'EX', seconds)
return type(count) == 'number' and count or 0
"""
)
_SWEEP = (
    _COMMON
    + """
local removed = 0
for i = 1, #KEYS, 2 do
    if redis.call('TYPE', KEYS[i + 1]).ok == 'zset' then
        local before = redis.call('ZCARD', KEYS[i + 1])
        trim(KEYS[i], KEYS[i + 1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
        removed = removed + before - redis.call('ZCARD', KEYS[i + 1])
    end
end
return removed
"""
)
_COUNT = """
local sums, changes, change = KEYS[1], KEYS[2], tonumber(ARGV[1])
change = math.max(change, (tonumber(redis.call('ZREVRANGE', changes, 0, 0, 'WITHSCORES')[2]) or 0) + 1)
for i = 2, #ARGV, 2 do
    redis.call('HINCRBYFLOAT', sums, ARGV[i], ARGV[i + 1])
    redis.call('ZADD', changes, string.format('%.0f', change), ARGV[i])
    change = change + 1
end
"""
_COUNTED = """
local changed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local found = {}
for i = 1, #changed, 2 do
    found[#found + 1] = {changed[i], redis.call('HGET', KEYS[1], changed[i]), changed[i + 1]}
end
return found
"""
_SWEEP_PAIRS = """
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, pair in ipairs(old) do
    redis.call('HDEL', KEYS[1], pair)
    redis.call('ZREM', KEYS[2], pair)
end
return #old
"""

Result = TypeVar("Result")


class RedisHistory(HistoryStore):
    """Histories behind a redis:// URL. Opening does not connect: a server that is away comes back by itself."""

    def __init__(self, url: str, retention: contract.Retention) -> None:
        # Bytes that are not text are told apart from events later.
        self._redis = redis_at(url, "history", decode_responses=True, encoding_errors="surrogateescape")
        from redis.exceptions import OutOfMemoryError, RedisError

        self._append = self._redis.register_script(_APPEND)
        self._delete = self._redis.register_script(_DELETE)
        self._sweep = self._redis.register_script(_SWEEP)
        self._count = self._redis.register_script(_COUNT)
        self._counted = self._redis.register_script(_COUNTED)
        self._sweep_pairs = self._redis.register_script(_SWEEP_PAIRS)
        self._full = OutOfMemoryError
        self._failures = (RedisError, OSError)
        self._retention = retention
        self._faults = contract.HistoryFaults()

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> Appended:
        retention = self._retention
        retention.check(events)
        arguments: list[Any] = [*self._limits(), retention.now, retention.tombstone_s]
        for event_id, item_id, timestamp, kind in events:
            texts = (event_id, item_id, kind) if kind else (event_id, item_id)
            arguments += event_id, timestamp, json.dumps(texts, ensure_ascii=False)
        return Appended(*await self._reach(self._append(keys=_keys(user_id), args=arguments)))

    async def read(self, user_id: str) -> list[StoredEvent]:
        _, members, _ = _keys(user_id)
        retention = self._retention
        newest = self._redis.zrange(
            members,
            retention.latest,
            retention.oldest,
            desc=True,
            byscore=True,
            withscores=True,
            offset=0,
            num=retention.max_events,
        )
        found = [_event(member, score) for member, score in reversed(await self._reach(newest))]
        events = [event for event in found if event is not None]
        if len(events) < len(found):
            self._faults.foreign(f"{PREFIX}:{{USER}}{MEMBERS} in Redis")
        return events

    async def delete(self, user_id: str) -> int:
        retention = self._retention
        arguments = retention.now, retention.latest, retention.tombstone_s
        return await self._reach(self._delete(keys=_keys(user_id), args=arguments))

    async def count(self, bundle: str, pairs: Mapping[tuple[str, str], float]) -> None:
        arguments: list[Any] = [self._retention.next_change(0)]
        for pair, count in pairs.items():
            arguments += json.dumps(pair, ensure_ascii=False), count
        await self._reach(self._count(keys=_pair_keys(bundle), args=arguments))

    async def counted(self, bundle: str, since: int) -> list[Pair]:
        found = await self._reach(self._counted(keys=_pair_keys(bundle), args=(since, PAIRS_AT_ONCE)))
        pairs = [pair for each in found if (pair := _pair(*each)) is not None]
        if len(pairs) < len(found):
            self._faults.foreign(f"{PAIRS}:{{BUNDLE}}:* in Redis")
        return pairs

    async def sweep(self) -> int:
        if self._retention.max_age_days is None:
            return 0  # Tombstones expire by themselves.
        removed = 0
        async for found in self._keys_like(f"{PREFIX}:{{*}}{MEMBERS}"):
            keys = [key for members in found for key in (members.removesuffix(MEMBERS) + IDS, members)]
            removed += await self._reach(self._sweep(keys=keys, args=self._limits()))
        limits = self._retention.oldest * 1_000, contract.SWEEP_AT_ONCE
        async for found in self._keys_like(f"{PAIRS}:{{*}}{CHANGES}"):
            for changes in found:
                both = changes.removesuffix(CHANGES) + SUMS, changes
                while await self._reach(self._sweep_pairs(keys=both, args=limits)) == contract.SWEEP_AT_ONCE:
                    pass
        return removed

    async def _keys_like(self, pattern: str) -> AsyncIterator[list[str]]:
        cursor = None
        while cursor != 0:
            scan = self._redis.scan(cursor or 0, match=pattern, count=contract.SWEEP_AT_ONCE)
            cursor, found = await self._reach(scan)
            if found:
                yield found

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    def _limits(self) -> tuple[int, int, int, int]:
        retention = self._retention
        seconds = (retention.max_age_days or 0) * contract.SECONDS_A_DAY
        return retention.oldest, retention.latest, retention.max_events, seconds

    async def _reach(self, answer: Awaitable[Result]) -> Result:
        try:
            return await answer
        except self._full as error:
            raise self._faults.full(error) from None
        except self._failures as error:
            if any(each in str(error) for each in _FOREIGN):
                raise self._faults.foreign_history(f"a key {PREFIX}:{{USER}}:* in Redis") from None
            raise self._faults.unreachable(error) from None


def _keys(user_id: str) -> tuple[str, str, str]:
    name = f"{PREFIX}:{{{user_id}}}"
    return name + IDS, name + MEMBERS, f"{PREFIX}:deleted:{contract.digest_of(user_id)}"


def _pair_keys(bundle: str) -> tuple[str, str]:
    name = f"{PAIRS}:{{{bundle}}}"
    return name + SUMS, name + CHANGES


def _pair(pair: str, count: str, change: str) -> Pair | None:
    """A pair as it is stored; None for what Fathom has not written."""
    try:
        source, target = json.loads(pair)
        source.encode(), target.encode()
        return Pair(source, target, float(count), int(change))
    except (ValueError, TypeError, AttributeError):
        return None


def _event(member: str, score: float) -> StoredEvent | None:
    """An event as it is stored; None for what Fathom has not written."""
    try:
        event_id, item_id, *kind = json.loads(member[ARRIVAL_DIGITS:])
        event = StoredEvent(event_id, item_id, int(score), *kind)
        event_id.encode(), item_id.encode(), event.type.encode()
    except (ValueError, TypeError, AttributeError):
        return None
    return event if score == event.timestamp else None
