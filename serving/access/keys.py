"""API keys: random texts, of which the server knows only hashes.

A key holds 256 random bits, so that its SHA-256 cannot be turned round by guessing, and needs no salt.
"""

import hashlib
import secrets
from typing import NamedTuple

PREFIX = "fathom_"


class NewKey(NamedTuple):
    """A key, which is shown once, and what the server stores of it."""

    text: str
    sha256: str


def new_key() -> NewKey:
    """A new random key."""
    text = PREFIX + secrets.token_urlsafe(32)
    return NewKey(text, hash_of(text))


def hash_of(key: str) -> str:
    """What the server knows a key by: 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()
