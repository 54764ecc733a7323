"""What is wrong with a store, said to its log and to clients."""

from fathom.errors import OverloadError, UnavailableError
from fathom.serving.logs import Seldom


class Faults:
    """A store's own words go to the log, seldom enough, and none of them to clients.

    ``store``: what it is called. ``until_then``: what a client can do while it cannot be reached.
    """

    def __init__(self, store: str, until_then: str) -> None:
        self._log = Seldom("fathom.serving")
        self._store = store
        self._until_then = until_then

    def unreachable(self, why: object) -> UnavailableError:
        """Nothing can be read or written now."""
        self._log.warning("the %s cannot be reached: %s", self._store, why)
        return UnavailableError(f"the {self._store} cannot be reached; {self._until_then}")

    def full(self, why: object) -> OverloadError:
        """Nothing can be written now."""
        self._log.warning("the %s cannot be written, it is full: %s", self._store, why)
        return OverloadError(f"the {self._store} is full; free some space on the server, then try again")

    def foreign(self, where: object) -> None:
        """The store holds something that Fathom has not written."""
        self._log.warning("%s holds something that Fathom has not written; it is left out", where)
