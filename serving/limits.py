"""Limits that several kinds of messages share; the others stand where the messages are checked."""

from fathom.errors import InvalidRequestError

LONGEST_ID_BYTES = 128
LARGEST_BOOST = 10


def check_id(name: str, value: str) -> None:
    """Raise InvalidRequestError for an id that is empty or too long."""
    size = len(value.encode())
    if not 1 <= size <= LONGEST_ID_BYTES:
        limit = f"at most {LONGEST_ID_BYTES}" if size else "at least 1"
        raise InvalidRequestError(f"{name} has {size} bytes, {limit}")


def check_boost(name: str, amount: float) -> None:
    """Raise InvalidRequestError for a boost that is too large, or no number."""
    if not abs(amount) <= LARGEST_BOOST:  # NaN is not
        raise InvalidRequestError(f"{name} is {amount:g}; give one from -{LARGEST_BOOST} to {LARGEST_BOOST}")
