"""The items of a bundle: ids, titles and categories by index."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fathom.errors import NotFoundError


@dataclass(frozen=True)
class Catalogue:
    """The items of a bundle by index 0..n-1; an unknown title is the empty string."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """External id -> item index."""
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def category_items(self) -> dict[str, NDArray[np.int32]]:
        """Category -> the indices of its items, ascending."""
        members: dict[str, list[int]] = {}
        for i, names in enumerate(self.categories):
            for name in names:
                members.setdefault(name, []).append(i)
        return {name: np.array(items, dtype=np.int32) for name, items in members.items()}

    def category_mask(self, categories: Iterable[str]) -> NDArray[np.bool_]:
        """True, shape (n,), for the items of at least one of these categories; NotFoundError for an unknown one."""
        mask = np.zeros(len(self.ids), dtype=np.bool_)
        for name in categories:
            items = self.category_items.get(name)
            if items is None:
                raise NotFoundError(f"no item of this catalogue has the category {name!r}")
            mask[items] = True
        return mask

    def attribute(self, name: str) -> NDArray[np.float64] | None:  # noqa: ARG002
        """None: a bundle knows no numbers of its items."""
        return None
