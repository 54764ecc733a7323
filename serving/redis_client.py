"""What the stores in Redis or Valkey have in common: how it is reached."""

from typing import Any

from fathom.errors import ConfigError, MissingExtraError

MOST_CONNECTIONS = 32
TIMEOUT_S = 1.0


def redis_at(url: str, setting: str, **options: Any) -> Any:
    """A client for a redis:// URL; it does not connect yet, and a server that is away comes back by itself.

    ``setting``: whose URL it is. ``options``: of its connections. Raises MissingExtraError without the library,
    ConfigError for what is no such URL.
    """
    try:
        from redis import asyncio as redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
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
            **options,
        )
    except ValueError:
        # Not its words: they may hold a part of the password.
        raise ConfigError(
            f"{setting}: not a URL of a Redis server; as redis://USER:PASSWORD@HOST:PORT/DB, with / # ? @ : of a"
            " password written as %2F %23 %3F %40 %3A"
        ) from None
    return redis.Redis.from_pool(pool)
