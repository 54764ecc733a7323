"""Whose turn it is: the engine's time is shared in work, by address, then connection, then name.

Weighted fair queueing (Demers, Keshav and Shenker, 1989; with the clock of Goyal, Vin and Cheng, 1996), level by level:
every share has the virtual moment at which its next work starts, which each piece of work moves on by its seconds. The
one whose next work would end first goes first, so short work waits for less. Who comes (again) starts now, by the clock
of its level: what it has not used is lost, and so is what it owes once nothing of its level waits. The clock follows
the one that is served, and never stands still while work is done (as in WF2Q+: Bennett and Zhang, 1996), so nobody
starves, however many newcomers there are.
"""

from typing import NamedTuple

#: Shares whose next work ends within the same grain are equal, and urgency decides between them. The clock is that much
#: behind the one that is served, so newcomers go before it.
GRAIN_S = 0.001
#: So many shares are remembered without a look at which may be forgotten.
FEW = 1_024


class Client(NamedTuple):
    """Whose request it is: a name on a connection from an address. Each level shares what the one above it gets."""

    address: str = ""
    connection: str = ""
    name: str = ""


ANYBODY = Client()


class Share:
    """What an address, a connection or a client gets of what its ``parent`` gets; without a parent, all.

    ``start_s``: when its next work starts, by the ``clock_s`` of its parent.
    ``waiting`` requests, of ``work_s`` seconds, are its own or those of the shares below it, of which ``busy`` have
    any; these start at ``starts_s`` in sum, and ``most`` has (or lately had) most.
    """

    __slots__ = ("busy", "clock_s", "last_s", "most", "parent", "start_s", "starts_s", "waiting", "work_s")

    def __init__(self, parent: "Share | None") -> None:
        self.parent = parent
        self.start_s = self.clock_s = self.last_s = self.starts_s = self.work_s = 0.0
        self.waiting = self.busy = 0
        self.most: Share | None = None

    def enter(self, work_s: float) -> None:
        """So much work waits now."""
        share = self
        while (parent := share.parent) is not None:
            if not share.waiting:
                if share.start_s < parent.clock_s:
                    share._move(parent.clock_s, parent)
                parent.busy += 1
                parent.starts_s += share.start_s
            share.waiting += 1
            share.work_s += work_s
            most = parent.most
            if most is not share and (most is None or share.work_s > most.work_s):
                parent.most = share
            share = parent
        share.waiting += 1
        share.work_s += work_s

    def serve(self, work_s: float, count: int = 1) -> None:
        """So much of what waits is done now: so many requests."""
        share = self
        while (parent := share.parent) is not None:
            clock_s = parent.clock_s + work_s / (parent.busy + 1)
            start_s = share.start_s
            parent.clock_s = clock_s if clock_s > start_s - GRAIN_S else start_s - GRAIN_S
            parent.starts_s += work_s
            share.start_s = start_s = start_s + work_s
            if start_s > parent.last_s:
                parent.last_s = start_s
            share = parent
        self.leave(work_s, count)

    def pay(self, work_s: float, most_s: float) -> None:
        """Count work that nobody will do as if it were done; nobody owes more than ``most_s`` by that."""
        share = self
        while (parent := share.parent) is not None:
            start_s = min(share.start_s + work_s, parent.clock_s + most_s)
            if start_s > share.start_s:
                share._move(start_s, parent)
            share = parent

    def leave(self, work_s: float, count: int = 1) -> None:
        """So much does not wait any more."""
        share = self
        while (parent := share.parent) is not None:
            share.waiting -= count
            if share.waiting:
                share.work_s -= work_s
            else:
                share.work_s = 0.0
                parent.busy -= 1
                if parent.busy:
                    parent.starts_s -= share.start_s
                else:
                    # All are equal again.
                    parent.starts_s = 0.0
                    parent.clock_s = max(parent.clock_s, parent.last_s)
            share = parent
        share.waiting -= count
        share.work_s = share.work_s - work_s if share.waiting else 0.0

    def _move(self, start_s: float, parent: "Share") -> None:
        if self.waiting:
            parent.starts_s += start_s - self.start_s
        self.start_s = start_s
        if start_s > parent.last_s:
            parent.last_s = start_s

    def turn(self, work_s: float) -> float:
        """When this work would end, if it went next, in grains."""
        return (self.start_s + work_s) // GRAIN_S

    def path(self) -> "list[Share]":
        """The address's, the connection's, the client's: this one and those above it, but not all's."""
        return [] if self.parent is None else [*self.parent.path(), self]

    def owes(self) -> bool:
        """Whether it starts later than a newcomer would in its place."""
        return self.parent is not None and self.start_s > self.parent.clock_s

    def before_s(self, ahead_s: float, work_s: float) -> float:
        """Seconds of what waits at the parent that are done before what follows ``ahead_s`` seconds here; about."""
        parent = self.parent
        assert parent is not None
        others, rest_s, starts_s = parent.busy, parent.work_s, parent.starts_s
        start_s = self.start_s if self.waiting else max(self.start_s, parent.clock_s)
        if self.waiting:
            others, rest_s, starts_s = others - 1, rest_s - self.work_s, starts_s - start_s
        # Whoever starts earlier than this gets about so much first.
        by_s = start_s + ahead_s + work_s
        most = parent.most
        if others and most is not None and most is not self and most.waiting:
            ahead_s += min(most.work_s, max(0.0, by_s - most.start_s))
            others, rest_s, starts_s = others - 1, rest_s - most.work_s, starts_s - most.start_s
        return ahead_s + max(0.0, min(rest_s, others * by_s - starts_s))


class Shares:
    """The shares of all that have something waiting or owe something, by client."""

    def __init__(self) -> None:
        self.all = Share(None)
        self._known: dict[tuple[str, ...], Share] = {}
        self._many = FEW

    def of(self, client: Client) -> Share:
        """The share of a client, perhaps a new one."""
        share = self._known.get(client)
        return self._added(client) if share is None else share

    def find(self, client: Client) -> Share | None:
        """The share of a client that has one."""
        return self._known.get(client)

    def _added(self, client: Client) -> Share:
        if len(self._known) >= self._many:
            self._forget()
        share = self.all
        for key in _path(client):
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = Share(share)
            share = found
        return share

    def _forget(self) -> None:
        """Forget who has nothing waiting and owes nothing; as seldom as makes it cheap."""
        kept: dict[tuple[str, ...], Share] = {}
        for key, share in self._known.items():
            if share.waiting or share.owes():
                kept.update((above, self._known[above]) for above in _path(Client(*key))[: len(key)])
        self._known = kept
        self._many = max(FEW, 2 * len(kept))

    def before_s(self, client: Client, work_s: float) -> float:
        """Seconds of the work that waits which are done before the next request of a client, of so many; about."""
        path, share = [], self.all
        for key in _path(client):
            found = self._known.get(key)
            share = Share(share) if found is None else found
            path.append(share)
            if found is None:
                break
        before_s = share.work_s
        for share in reversed(path):
            before_s = share.before_s(before_s, work_s)
        return before_s

    def has_its_part(self, client: Client, most: int) -> bool:
        """Whether nothing more of a client may wait where ``most`` requests wait already, of all.

        At each level who has less than its part, in requests and in work, may have more; who has twice its part leaves
        no more room to those below.
        """
        above = self.all
        if above.waiting >= 2 * most:
            share = self._known.get(client[:1])
            return share is not None and share.waiting > 0
        for key in _path(client):
            share = self._known.get(key)
            if share is None or not share.waiting:
                return most // (above.busy + 1) < 1
            most //= above.busy
            if share.waiting < most and share.work_s * above.busy < above.work_s:
                return False
            if share.waiting >= 2 * most:
                return True
            above = share
        return True


def _path(client: Client) -> tuple[tuple[str, ...], ...]:
    return client[:1], client[:2], client
