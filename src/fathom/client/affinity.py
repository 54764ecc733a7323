"""Which of several servers gets a call: always the same one for a user, because its prefix cache knows the history.

Rendezvous hashing (Thaler and Ravishankar, 1998): of all servers, the one whose hash together with the user's is the
largest. When one of n servers is lost or added, only the users of its share, 1/n, move. All clients that name the
servers alike agree without talking to each other. The load is bounded as in Mirrokni, Thorup and Zadimoghaddam (2018).
"""

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import cycle
from math import ceil
from threading import Lock
from typing import Any

import grpc

#: So many of a history's oldest items stand for its user: they stay while the history grows.
HEAD = 4
#: A server may have so many times the mean of this client's calls in flight; the next one gets what is beyond.
MOST_LOAD = 1.5
#: So many it may have in any case: few calls are never spread evenly, and no reason to leave a cache.
LEAST_BOUND = 8
#: Of one call, all servers together.
ATTEMPTS = 4
#: Before a server is asked again that has just been lost, where there is no other one; grows with each attempt.
FIRST_PAUSE_S = 0.1
#: The budget of attempts on other servers, as gRPC's retryThrottling: ten failures in a row stop them.
TOKENS, PER_SUCCESS = 10.0, 0.1

_64_BITS = (1 << 64) - 1


def key_of(request: Any) -> str:
    """What the requests of a user have in common; "" where there is nothing.

    ``user_id``, else ``session_id``, else the HEAD oldest items, of any message that has these fields; of one with many
    requests, the first one's.
    """
    if requests := getattr(request, "requests", ()):
        return key_of(requests[0])
    for name in ("user_id", "session_id"):
        if found := getattr(request, name, ""):
            return str(found)
    return "\n".join(getattr(request, "item_ids", ())[:HEAD])


def hash_of(text: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _mixed(value: int) -> int:
    """The finalizer of SplitMix64: each bit of the result depends on all of the value's."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)


@dataclass(eq=False)
class Backend:
    """One connection to one server; ``name`` says which. ``usable``: not known to be gone or draining.

    ``watcher``: what gRPC calls when the state of a blocking client's connection changes.
    """

    target: str
    name: str
    channel: Any
    stub: Any
    usable: bool = True
    watcher: Callable[[grpc.ChannelConnectivity], None] | None = None
    in_flight: int = 0
    removed: bool = False
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.seed = hash_of(self.name)


class Backends:
    """The servers that there are now; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._all: tuple[Backend, ...] = ()
        self._tokens = TOKENS

    @property
    def all(self) -> tuple[Backend, ...]:
        """In no particular order."""
        return self._all

    def become(self, names: Collection[str], make: Callable[[str], Backend]) -> tuple[list[Backend], list[Backend]]:
        """Have exactly these; returns those that ``make`` has made, and those that nothing uses any longer."""
        with self._lock:
            kept = [each for each in self._all if each.name in names]
            known = {each.name for each in kept}
            added = [make(name) for name in sorted(set(names) - known)]
            lost = [each for each in self._all if each.name not in names]
            for each in lost:
                each.removed = True
            self._all = (*kept, *added)
            return added, [each for each in lost if not each.in_flight]

    def first(self, key: str) -> Backend | None:
        """Who would get a call with this key if nobody had much to do; None where there is no server."""
        ranked = self._ranked(hash_of(key))
        return next((each for each in ranked if each.usable), ranked[0] if ranked else None)

    def take(self, key: str, tried: Collection[Backend] = ()) -> Backend | None:
        """Who gets a call, which is in flight from now on; a call without a key goes anywhere.

        The first of the ranking that is usable, has not been tried and is not busier than others; on another server, if
        there is one. Where none is usable, the first is asked all the same: it may be back.
        """
        with self._lock:
            ranked = self._ranked(hash_of(key) if key else random.getrandbits(64))
            if not ranked:
                return None
            usable = _preferred(ranked, tried)
            in_flight = sum(each.in_flight for each in usable)
            most = max(LEAST_BOUND, ceil(MOST_LOAD * (in_flight + 1) / len(usable)))
            chosen = next((each for each in usable if each.in_flight < most), usable[0])
            chosen.in_flight += 1
            return chosen

    def release(self, backend: Backend) -> bool:
        """A call is over; true where its backend has been removed and nothing uses it any longer."""
        with self._lock:
            backend.in_flight -= 1
            return backend.removed and not backend.in_flight

    def succeeded(self) -> None:
        """A call had an answer."""
        with self._lock:
            self._tokens = min(TOKENS, self._tokens + PER_SUCCESS)

    def may_try_again(self) -> bool:
        """A server could not be reached: whether there is budget to ask another one."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > TOKENS / 2

    def _ranked(self, key: int) -> Sequence[Backend]:
        return sorted(self._all, key=lambda each: _mixed(key ^ each.seed), reverse=True)


def _preferred(ranked: Sequence[Backend], tried: Collection[Backend]) -> Sequence[Backend]:
    """Those that a call may go to, in their order; never none of some."""
    lost = {each.target for each in tried}
    untried = [each for each in ranked if each not in tried]
    elsewhere = [each for each in untried if each.target not in lost]
    wanted = [[each for each in group if each.usable] for group in (elsewhere, untried, ranked)]
    return next(group for group in (*wanted, elsewhere, untried, ranked) if group)


class Turns:
    """The connections to one server, which calls take turns on; gRPC itself tries again. Like ``Backends``."""

    def __init__(self) -> None:
        self.all: tuple[Backend, ...] = ()
        self._turns: Iterator[Backend] = iter(())

    def become(self, names: Collection[str], make: Callable[[str], Backend]) -> tuple[list[Backend], list[Backend]]:
        """Called once."""
        self.all = tuple(map(make, names))
        self._turns = cycle(self.all)
        return list(self.all), []

    def take(self, _: str, tried: Collection[Backend] = ()) -> Backend | None:  # noqa: ARG002
        """The next one."""
        return next(self._turns, None)

    def release(self, _: Backend) -> bool:
        """See ``Backends``."""
        return False

    def succeeded(self) -> None:
        """See ``Backends``."""

    def may_try_again(self) -> bool:
        """Never."""
        return False


class Way:
    """One call on its way: which server has it, which have failed it, and how much time is left."""

    def __init__(self, backends: Turns | Backends, key: str, timeout_s: float) -> None:
        self._backends, self.key = backends, key
        self._ends_s = time.monotonic() + timeout_s
        self._tried: list[Backend] = []
        self._attempts = 0
        self.next()

    def next(self) -> None:
        """Give the call to the next server."""
        backend = self._backends.take(self.key, self._tried)
        assert backend is not None  # there is no way without a server
        self.backend, self._held = backend, True
        self._attempts += 1

    @property
    def left_s(self) -> float:
        """Seconds; at least a little, so that gRPC is what says that it is too late."""
        return max(0.001, self._ends_s - time.monotonic())

    def release(self) -> Backend | None:
        """The server no longer has the call; returns what is to be closed now, if anything."""
        held, self._held = self._held, False
        return self.backend if held and self._backends.release(self.backend) else None

    def succeeded(self) -> None:
        """The server has answered."""
        self._backends.succeeded()

    def failed(self, code: grpc.StatusCode) -> float | None:
        """The server has not: how many seconds to wait before ``next``; None where the call has failed for good."""
        if code is not grpc.StatusCode.UNAVAILABLE or not self._backends.may_try_again():
            return None
        self._tried.append(self.backend)
        pause_s = 0.0
        if all(each in self._tried for each in self._backends.all if each.usable):
            pause_s = FIRST_PAUSE_S * self._attempts * random.uniform(0.8, 1.2)
            self._tried.clear()
        return None if self._attempts == ATTEMPTS or pause_s >= self.left_s else pause_s


def grouped(backends: Backends, requests: Iterable[Any]) -> list[list[int]]:
    """The places of requests in their message, together where one server is to get them."""
    groups: dict[Backend | None, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(backends.first(key_of(request)), []).append(place)
    return list(groups.values())
