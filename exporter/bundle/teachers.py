"""Whose requests the selector learns from, and whose judge it: never the same users, nor users with the same case.

Two thirds of the users teach. What is learned of them is how alike the answers of all depths are, which no target is
needed for, so every prefix of a training history is a request. The others judge, by whole histories.
"""

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fathom.training.splits import Cases, Split

TEACHERS = 2 / 3
#: Prefixes of one history, at least (the whole one among them) and at most.
FEWEST_PREFIXES, MOST_PREFIXES = 2, 8


def case_digests(cases: Cases, longest: int) -> NDArray[np.void]:
    """What identifies a case: sha256 of its newest ``longest`` items, oldest first, and of the target; V32 (n,).

    Times do not count: a copy of a user at another time is still a copy.
    """
    pairs = zip(cases.histories, cases.targets.astype("<i4"), strict=True)
    return np.array([sha256(_window(items, longest) + target.tobytes()).digest() for items, target in pairs], "V32")


def are_teachers(digests: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which users teach, (n,), by the digests V32 (n,) of their test cases."""
    first = [int.from_bytes(sha256(b"teacher" + digest).digest()[:8], "big") for digest in digests.tolist()]
    return np.array(first, dtype=np.float64) / 2**64 < TEACHERS


def teaching_cases(cut: Split, longest: int, most: int) -> tuple[Cases, NDArray[np.bool_]]:
    """At most so many requests of teachers, from prefixes of training histories; and which are whole ones, (n,).

    They have no targets, which are -1. Lengths are evenly spaced in their logarithm, as far as the training history
    reaches. Left out is what would bring the same newest ``longest`` items as another one, or as a judge's history.
    Users without a test case judge nothing, so they teach; so does everybody where nobody else would. Users are
    numbered, and in order, by a hash of what they did: their order in the data changes nothing.
    """
    judges = cut.test.select(np.flatnonzero(~are_teachers(case_digests(cut.test, longest))))
    users = np.setdiff1d(np.flatnonzero(cut.train.lengths), judges.users)
    if not len(users):
        users = np.flatnonzero(cut.train.lengths)
    teachers = sorted(users.tolist(), key=lambda user: sha256(_window(cut.until_test[user], longest)).digest())
    # As many users as there is room for; few users bring more prefixes each.
    per_user = int(np.clip(most // len(teachers), FEWEST_PREFIXES, MOST_PREFIXES))
    seen = {_window(history, longest) for history in judges.histories}
    rows: list[tuple[int, int, int]] = []
    for number, user in enumerate(teachers[: most // per_user]):
        for end in np.unique(np.geomspace(1, len(cut.train[user]), per_user).round().astype(np.int64)).tolist():
            window = _window(cut.train[user][:end], longest)
            if window not in seen or not rows:
                seen.add(window)
                rows.append((number, user, end))
    numbers, owners, ends = np.array(rows).T
    histories = cut.train.select(owners)
    places = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], histories.lengths)
    prefixes = histories.keep(places < np.repeat(ends, histories.lengths))
    return Cases(prefixes, np.full(len(rows), -1, np.int32), numbers.astype(np.int32)), ends == histories.lengths


def _window(items: NDArray[np.int32], longest: int) -> bytes:
    return items[-longest:].astype("<i4").tobytes()
