"""Filters as requests state them: checked against their contract, and looked up.

The limits are those of the comments in ``recommender.proto``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fathom.errors import InvalidRequestError, NotFoundError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.manifest import LONGEST_TYPE_BYTES
from fathom.runtime.query import IndexedQuery, Range
from fathom.serving.limits import check_type, echo

#: What a filter may list, by field.
MOST_OF_A_FILTER = {
    "exclude_item_ids": 10_000,
    "allow_item_ids": 10_000,
    "categories": 100,
    "ranges": 20,
    "seen_types": 100,
    "block_lists": 100,
}


class RequestedFilters:
    """Looks filters up in one catalogue, and in the server's block lists: ids by name."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._catalogue = catalogue
        self._block_lists: Mapping[str, Sequence[str]] = {}
        # Items of block lists, and the version of the catalogue that they were looked up in.
        self._blocked: dict[str, tuple[int, np.ndarray]] = {}

    def use_block_lists(self, block_lists: Mapping[str, Sequence[str]]) -> None:
        """Follow the server's block lists from now on."""
        self._block_lists = block_lists
        self._blocked.clear()

    def filtered(self, query: IndexedQuery, request: pb.RecommendRequest) -> IndexedQuery:
        """The query of a request with its filter; raises InvalidRequestError or NotFoundError."""
        wanted = request.filter
        _check_filter(wanted)
        seen = self._seen(request) if wanted.seen_types and not wanted.include_seen else None
        return replace(
            query,
            exclude=self._excluded(wanted),
            allow=self._known(wanted.allow_item_ids) if wanted.allow_item_ids else None,
            categories=self._wanted_categories(wanted.categories),
            include_seen=wanted.include_seen,
            seen=seen,
            ranges=[self._range(each) for each in wanted.ranges],
        )

    def _seen(self, request: pb.RecommendRequest) -> np.ndarray:
        """The known items of the history whose event was of one of the filter's types; without types, all are empty."""
        for each in request.filter.seen_types:
            check_type("seen_types", each)
        wanted, types = frozenset(request.filter.seen_types), request.event_types
        if not types:
            return self._known(request.item_ids if "" in wanted else ())
        return self._known(item for item, kind in zip(request.item_ids, types, strict=True) if kind in wanted)

    def _excluded(self, wanted: pb.Filter) -> np.ndarray:
        """The items that a filter names one by one or by block lists; repeats are welcome."""
        excluded = self._known(wanted.exclude_item_ids)
        if not wanted.block_lists:
            return excluded
        return np.concatenate((excluded, *map(self._block_list, dict.fromkeys(wanted.block_lists))))

    def _block_list(self, name: str) -> np.ndarray:
        """The items of one of the server's block lists; looked up again when the catalogue has changed."""
        if name not in self._block_lists:
            known = ", ".join(sorted(self._block_lists)) or "none"
            raise NotFoundError(f"block list {echo(name)} is not in the server's rules; there: {known}")
        version, items = self._blocked.get(name, (-1, np.empty(0, np.int64)))
        if version != self._catalogue.version:
            items = self._known(self._block_lists[name])
            self._blocked[name] = self._catalogue.version, items
        return items

    def _range(self, wanted: pb.Range) -> Range:
        name = wanted.attribute
        size = len(name.encode())
        if not 1 <= size <= LONGEST_TYPE_BYTES:
            raise InvalidRequestError(f"ranges has an attribute of {size} bytes, 1 to {LONGEST_TYPE_BYTES}")
        low = wanted.at_least if wanted.HasField("at_least") else None
        high = wanted.at_most if wanted.HasField("at_most") else None
        if any(bound is not None and math.isnan(bound) for bound in (low, high)):
            raise InvalidRequestError(f"the range of {echo(name)} has a bound that is no number")
        if self._catalogue.attribute(name) is None:
            raise NotFoundError(f"no item of the catalogue has the attribute {echo(name)}")
        return Range(name, low, high)

    def _wanted_categories(self, names: Sequence[str]) -> frozenset[str]:
        wanted = frozenset(names)
        for name in names:
            if not self._catalogue.has_category(name):
                raise NotFoundError(f"category {echo(name)} is not in the catalogue")
        return wanted

    def _known(self, ids: Iterable[str]) -> np.ndarray:
        indices = [index for item in ids if (index := self._catalogue.find(item)) is not None]
        return np.array(indices, np.int64)


def _check_filter(wanted: pb.Filter) -> None:
    for name, most in MOST_OF_A_FILTER.items():
        if (given := len(getattr(wanted, name))) > most:
            raise InvalidRequestError(f"filter has {given} {name}, at most {most}")
