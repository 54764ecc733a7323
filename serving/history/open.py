"""Opens the store that the setting ``history`` names."""

from pathlib import Path

from fathom.errors import ConfigError
from fathom.serving.history.contract import HistoryStore, Retention
from fathom.serving.history.memory import MemoryHistory


def open_history(setting: str, retention: Retention) -> HistoryStore | None:
    """The store that ``off``, ``memory``, ``sqlite:PATH`` or a redis URL names.

    Raises ConfigError for anything else and where it cannot be opened, MissingExtraError without a client for Redis.
    """
    kind, _, rest = setting.partition(":")
    if setting == "off":
        return None
    if setting == "memory":
        return MemoryHistory(retention)
    if kind == "sqlite" and rest:
        from fathom.serving.history.sqlite import SqliteHistory

        return SqliteHistory(Path(rest), retention)
    if kind in ("redis", "rediss", "unix") and rest.startswith("//"):
        from fathom.serving.history.redis import RedisHistory

        return RedisHistory(setting, retention)
    # Not the setting itself: it may hold a password.
    raise ConfigError(f"history: {kind!r} is not possible; one of off, memory, sqlite:PATH, redis://HOST:PORT/DB")
