"""Opens the store that the setting ``catalogue`` names."""

from pathlib import Path

from fathom.errors import ConfigError
from fathom.serving.items.contract import ItemStore
from fathom.serving.items.memory import MemoryItems


def open_items(setting: str) -> ItemStore | None:
    """The store that ``off``, ``memory``, ``sqlite:PATH`` or a redis URL names.

    Raises ConfigError for anything else and where it cannot be opened, MissingExtraError without a client for Redis.
    """
    kind, _, rest = setting.partition(":")
    if setting == "off":
        return None
    if setting == "memory":
        return MemoryItems()
    if kind == "sqlite" and rest:
        from fathom.serving.items.sqlite import SqliteItems

        return SqliteItems(Path(rest))
    if kind in ("redis", "rediss", "unix") and rest.startswith("//"):
        from fathom.serving.items.redis import RedisItems

        return RedisItems(setting)
    # Not the setting itself: it may hold a password.
    raise ConfigError(f"catalogue: {kind!r} is not possible; one of off, memory, sqlite:PATH, redis://HOST:PORT/DB")
