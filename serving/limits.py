"""Limits that several kinds of messages share; the others stand where the messages are checked."""

from fathom.errors import InvalidRequestError
from fathom.runtime.manifest import LONGEST_TYPE_BYTES

LONGEST_ID_BYTES = 128
LARGEST_BOOST = 10
DEFAULT_K, LARGEST_K = 10, 1_000
LAST_SECOND_OF_9999 = 253_402_300_799
#: Longest piece of a client's own text that an error repeats.
LONGEST_ECHO = 60


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


def check_type(name: str, value: str) -> None:
    """Raise InvalidRequestError for a type of events that is too long; an empty one is allowed."""
    size = len(value.encode())
    if size > LONGEST_TYPE_BYTES:
        raise InvalidRequestError(f"{name} has a type of {size} bytes, at most {LONGEST_TYPE_BYTES}")


def bad_second(name: str, value: int) -> InvalidRequestError:
    """What is raised for a time that is not between 0 and LAST_SECOND_OF_9999."""
    return InvalidRequestError(
        f"{name} has {value}; send seconds since 1970 (not milliseconds), none negative or after the year 9999"
    )


def echo(text: str) -> str:
    """A client's own text, as an error may repeat it."""
    return ascii(text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "...")
