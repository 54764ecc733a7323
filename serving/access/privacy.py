"""What callers may ask who know a user's id, but may not know what that user did.

An answer leaves out what its user has seen. Whoever may also name the items that are to be considered, or push items
to the top, reads the history off what is missing. So such callers get one list of the best items, and no say in which
items come into question. docs/security.md says what can still be inferred.
"""

from fathom.errors import PermissionDeniedError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.access.principal import Principal, Role

#: Items of an answer from a stored history: so many, and at most this part of all. What is missing from a list of
#: nearly all items has been seen.
MOST_ITEMS, MOST_PART = 50, 10


def sees_histories(principal: Principal) -> bool:
    """Whether it may know what stored histories hold: it writes them, or does so for a user of its own."""
    return principal.may(Role.WRITE)


def check_private(request: pb.RecommendRequest, principal: Principal) -> None:
    """Raise PermissionDeniedError where a request with a ``user_id`` could show what that user's history holds."""
    if sees_histories(principal):
        return
    asked = [name for name in ("filter", "rules", "depth") if request.HasField(name)]
    # Answers change with the time since the newest event: by asking for other times, that event's is found. Other
    # contexts bring other items to the top, and what is missing there shows.
    asked += [name for name in ("include_reasons", "request_time", "context") if getattr(request, name)]
    if asked:
        raise PermissionDeniedError(
            f"{principal.name} may not combine user_id with {' or '.join(asked)}: the answer could show what the user's"
            " history holds; that needs the role write"
        )


def check_private_size(k: int, items: int, principal: Principal) -> None:
    """Raise PermissionDeniedError where an answer from a history that must stay private has too many items.

    ``items``: that may be returned at all.
    """
    most = min(MOST_ITEMS, max(1, items // MOST_PART))
    if k > most:
        raise PermissionDeniedError(
            f"{principal.name} may ask for at most {most} items with a user_id; more could show what the user's history"
            " holds, and needs the role write"
        )
