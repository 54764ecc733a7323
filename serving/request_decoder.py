"""Decodes requests: checks a RecommendRequest against its contract, and turns ids into item indices.

The limits are those of the comments in ``recommender.proto``.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import InvalidRequestError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.context import Context, Rows
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.manifest import LONGEST_VALUE_BYTES, MOST_FEATURES
from fathom.runtime.prefix_cache import Owner
from fathom.runtime.query import IndexedQuery
from fathom.runtime.rules import Rules
from fathom.runtime.shares import ANYBODY, Client
from fathom.serving.limits import DEFAULT_K, LARGEST_K, LAST_SECOND_OF_9999, bad_second, check_id, check_type, echo
from fathom.serving.requested_filter import RequestedFilters
from fathom.serving.requested_rules import ServerRules, check_rules, indexed_rules

LONGEST_HISTORY = 10_000


class RequestDecoder:
    """Decodes requests for one bundle and its catalogue.

    ``profiles`` maps every name and tier a request may give to its DeviceProfile.
    """

    def __init__(
        self,
        bundle: Bundle,
        catalogue: LiveCatalogue,
        profiles: dict[str, DeviceProfile],
        default_profile: DeviceProfile,
    ) -> None:
        self._catalogue = catalogue
        # Of trained items: looked up first, and in most requests enough.
        self._index = bundle.catalogue.index
        self._counts = bundle.counting is not None
        self._context = bundle.context
        self._profiles = {**profiles, "": default_profile}
        self._filters = RequestedFilters(catalogue)
        self._default_wanted: pb.Rules | None = None
        self._default: Rules | None = None
        self._default_of = -1

    def query(
        self,
        request: pb.RecommendRequest,
        deadline_s: float | None,
        client: Client = ANYBODY,
        owner: Owner | None = None,
        scope: bytes = b"",
    ) -> tuple[IndexedQuery, int]:
        """The IndexedQuery of a client's request, and the number of unknown items in its history.

        ``deadline_s``: on the clock of ``time.monotonic``. ``owner``: whose history it is, where that is known.
        ``scope``: see ``IndexedQuery``. Raises InvalidRequestError or NotFoundError.
        """
        if request.request_id:
            check_id("request_id", request.request_id)
        if request.session_id:
            check_id("session_id", request.session_id)
        items, timestamps, unknown = self._history(request)
        query = IndexedQuery(
            items=items,
            timestamps=timestamps,
            k=self._k(request.k),
            profile=self.profile(request.profile),
            depth=request.depth if request.HasField("depth") else None,
            deadline_s=deadline_s,
            client=client,
            owner=owner,
            scope=scope,
            include_reasons=request.include_reasons,
            rules=self._rules(request.rules) if request.HasField("rules") else self._default_rules(),
            asked_s=_asked(request),
            context=_context(request.context, self._context) if request.context else (),
        )
        return self._filters.filtered(query, request) if request.HasField("filter") else query, unknown

    def use_rules(self, rules: ServerRules) -> None:
        """Follow the server's rules from now on; NotFoundError for an unknown category, and then nothing changes."""
        default = None if rules.default is None else self._rules(rules.default)
        self._default_wanted, self._default, self._default_of = rules.default, default, self._catalogue.version
        self._filters.use_block_lists(rules.block_lists)

    def is_stranger(self, request: pb.RecommendRequest) -> bool:
        """Whether a request gets what is popular, because no item of its history is known."""
        return self._may_be_stranger(request) and all(self._catalogue.find(id) is None for id in request.item_ids)

    def _may_be_stranger(self, request: pb.RecommendRequest) -> bool:
        return self._counts and not request.strict and not request.depth

    def profile(self, name: str) -> DeviceProfile:
        """The profile of a request; raises NotFoundError for one that is not served."""
        profile = self._profiles.get(name)
        if profile is None:
            known = ", ".join(sorted(filter(None, self._profiles)))
            raise NotFoundError(f"profile {echo(name)} is not served; served: {known}")
        return profile

    def _history(self, request: pb.RecommendRequest) -> tuple[np.ndarray, np.ndarray | None, int]:
        given, may_be_stranger = len(request.item_ids), self._may_be_stranger(request)
        if given == 0 and not may_be_stranger:
            if request.user_id:
                user = echo(request.user_id)
                raise NotFoundError(f"user {user} has no history; send item_ids, or append events first")
            raise InvalidRequestError("item_ids is empty; send at least one item of the user's history, or a user_id")
        if given > LONGEST_HISTORY:
            raise InvalidRequestError(f"item_ids has {given} items, at most {LONGEST_HISTORY}; send the newest ones")
        if request.event_types:
            _check_types(request.event_types, given)
        timestamps = _checked_timestamps(request.timestamps, given) if request.timestamps else None
        try:
            return np.fromiter(map(self._index.get, request.item_ids), np.int64, given), timestamps, 0
        except TypeError:  # a None: an unknown item
            found = list(map(self._catalogue.find, request.item_ids))
        known = np.array([index is not None for index in found])
        items = np.array([index for index in found if index is not None], np.int64)
        if not items.size:
            if may_be_stranger:
                return items, None, given
            raise NotFoundError(f"no item of the history is in the catalogue, as {echo(request.item_ids[0])}")
        return items, None if timestamps is None else timestamps[known], given - len(items)

    def _k(self, k: int) -> int:
        if k > LARGEST_K:
            raise InvalidRequestError(f"k is {k}, at most {LARGEST_K}")
        # What is not there is not returned, whether the catalogue ends before k or a filter leaves less.
        return min(k or DEFAULT_K, len(self._catalogue))

    def _rules(self, wanted: pb.Rules) -> Rules:
        """The rules of a request or of the server; raises InvalidRequestError or NotFoundError."""
        check_rules(wanted)
        return indexed_rules(wanted, self._catalogue)

    def _default_rules(self) -> Rules | None:
        """What the server does where a request does not say; looked up again when the catalogue has changed."""
        wanted = self._default_wanted
        if wanted is None:
            return None
        if self._default_of != self._catalogue.version:
            self._default_of = self._catalogue.version
            with suppress(NotFoundError):  # A category that was in the catalogue at the start, and is no more.
                self._default = self._rules(wanted)
        return self._default


def _check_types(types: Sequence[str], given: int) -> None:
    if len(types) != given:
        raise InvalidRequestError(f"event_types has {len(types)} values for {given} items; send one per item, or none")
    for kind in types:
        check_type("event_types", kind)


def _checked_timestamps(values: Sequence[int], given: int) -> np.ndarray:
    if len(values) != given:
        raise InvalidRequestError(f"timestamps has {len(values)} values for {given} items; send one per item, or none")
    times = np.fromiter(values, np.int64, given)
    first, last = int(times.min()), int(times.max())
    if first < 0 or last > LAST_SECOND_OF_9999:
        raise bad_second("timestamps", first if first < 0 else last)
    falls = np.flatnonzero(times[1:] < times[:-1])
    if falls.size:
        raise InvalidRequestError(
            f"timestamps fall at position {int(falls[0]) + 1}; send the history oldest first, with its own times"
        )
    return times


def _asked(request: pb.RecommendRequest) -> int:
    """The time of a request, in seconds since 1970."""
    if not 0 <= request.request_time <= LAST_SECOND_OF_9999:
        raise bad_second("request_time", request.request_time)
    return request.request_time or int(time.time())


def _context(given: Mapping[str, str], known: Context | None) -> Rows:
    """What a bundle knows of a request's context; a value that it does not know counts as missing."""
    if len(given) > MOST_FEATURES:
        raise InvalidRequestError(f"context has {len(given)} features, at most {MOST_FEATURES}")
    for name, value in given.items():
        if known is None or name not in known.values:
            there = "none" if known is None else ", ".join(known.values)
            raise InvalidRequestError(f"context has the feature {echo(name)}; this bundle's are: {there}")
        if (size := len(value.encode())) > LONGEST_VALUE_BYTES:
            raise InvalidRequestError(f"context has {size} bytes of {echo(name)}, at most {LONGEST_VALUE_BYTES}")
    return () if known is None else known.rows(given)
