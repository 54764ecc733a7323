"""Whose requests the selector learns from, and whose judge it: never the same users, nor users with the same case.

A third of the users teach: more would hardly teach more, and who teaches cannot judge. What is learned of them is how
alike the answers of all depths are, which no target is needed for. The others judge, by whole histories.

A network has been trained on what follows nearly every prefix of a training history, and there its depths agree more
than they will on anything new. So requests end where training did, or later: what follows was never learned from.
"""

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fathom.training.splits import Cases, Split

TEACHERS = 1 / 3
#: Requests of one user, at most.
MOST_EACH = 8


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
    """At most so many requests of teachers, without test items; and which are whole histories, (n,).

    They have no targets, which are -1. Left out is what would bring the same newest ``longest`` items as another one,
    or as a judge's history. Users without a test case judge nothing, so they teach; so does everybody where nobody else
    would. Users are numbered, and in order, by a hash of what they did: their order in the data changes nothing.
    """
    judges = cut.test.select(np.flatnonzero(~are_teachers(case_digests(cut.test, longest))))
    users = np.setdiff1d(np.flatnonzero(cut.until_test.lengths), judges.users)
    if not len(users):
        users = np.flatnonzero(cut.until_test.lengths)
    teachers = sorted(users.tolist(), key=lambda user: sha256(_window(cut.until_test[user], longest)).digest())
    # As many users as there is room for; few users bring more requests each.
    per_user = int(np.clip(most // len(teachers), 1, MOST_EACH))
    seen = {_window(history, longest) for history in judges.histories}
    rows: list[tuple[int, int, int, int]] = []
    for number, user in enumerate(teachers[: most // per_user]):
        for start, end in _parts(int(cut.train.lengths[user]), int(cut.until_test.lengths[user]), per_user):
            window = _window(cut.until_test[user][start:end], longest)
            if window not in seen:
                seen.add(window)
                rows.append((number, user, start, end))
    if not rows:  # nobody has a history of their own
        rows.append((0, teachers[0], 0, int(cut.until_test.lengths[teachers[0]])))
    numbers, owners, starts, ends = np.array(rows).T
    histories = cut.until_test.select(owners)
    places = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], histories.lengths)
    inside = (places >= np.repeat(starts, histories.lengths)) & (places < np.repeat(ends, histories.lengths))
    return Cases(histories.keep(inside), np.full(len(rows), -1, np.int32), numbers.astype(np.int32)), starts == 0


def _parts(trained: int, known: int, count: int) -> list[tuple[int, int]]:
    """(start, end) of at most so many requests of a user with ``known`` events, ``trained`` of them in training.

    First whole histories that end in the newest events, at most half of all, the newest of them first. Then the newest
    parts of that one, of lengths that are evenly spaced in their logarithm.
    """
    ends = range(known, max(trained, 1) - 1, -1)[: (count + 1) // 2]
    lengths = np.unique(np.geomspace(1, known, count - len(ends) + 1).round().astype(np.int64))[:-1]
    return [*((0, end) for end in ends), *((known - length, known) for length in lengths.tolist())]


def _window(items: NDArray[np.int32], longest: int) -> bytes:
    return items[-longest:].astype("<i4").tobytes()
