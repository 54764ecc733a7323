"""The users and items that a load test invents, and how they are taken away again."""

from collections.abc import Collection, Sequence

import grpc

from fathom.client import CATALOGUE_TIMEOUT_S, DEFAULT_TIMEOUT_S, error_of
from fathom.errors import ConfigError
from fathom.loadtests.users.load_run import MARK, LoadRun
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

#: Always the same ones, so that test after test leaves no more behind than one that was killed.
USER_IDS = tuple(f"{MARK}-user-{number}" for number in range(50))
CHANGED_IDS = tuple(f"{MARK}-item-{number}" for number in range(100))
REMOVED_IDS = tuple(f"{MARK}-removed-{number}" for number in range(10))
#: More than one, as a message of a user who was stopped may come later than the removal.
MOST_REMOVALS = 5


def delete_users(load: LoadRun, ids: Sequence[str]) -> None:
    """Make the server forget users; raises grpc.RpcError."""
    with load.admin.channel() as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        for user_id in ids:
            request = pb.DeleteUserRequest(user_id=user_id)
            stub.DeleteUser(request, timeout=DEFAULT_TIMEOUT_S, metadata=load.admin.pairs)


def remove_items(load: LoadRun, ids: Sequence[str]) -> None:
    """Take items out; raises grpc.RpcError."""
    with load.admin.channel() as channel:
        stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        request = pb.RemoveItemsRequest(item_ids=ids)
        for _ in range(MOST_REMOVALS):
            if not stub.RemoveItems(request, timeout=CATALOGUE_TIMEOUT_S, metadata=load.admin.pairs).removed:
                break


#: By option: the ids of what its users write, and how that is taken away.
WRITTEN = {
    "write_events": (USER_IDS, delete_users),
    "write_items": ((*REMOVED_IDS, *CHANGED_IDS), remove_items),
}


def check_removable(load: LoadRun, options: Collection[str]) -> None:
    """Raise ConfigError where what the users of these options write could not be taken away again."""
    for option in sorted(WRITTEN.keys() & options):
        ids, clean = WRITTEN[option]
        try:
            clean(load, ids[:1])
        except grpc.RpcError as error:
            why = error_of(load.admin.target, error)
            raise ConfigError(
                f"--{option.replace('_', '-')}: what is written could not be removed again: {why}"
            ) from None


def remove_written(load: LoadRun, options: Collection[str]) -> list[str]:
    """Take away what the users of these options have written; says in lines what may be left."""
    lines = []
    for option in sorted(WRITTEN.keys() & options):
        ids, clean = WRITTEN[option]
        try:
            clean(load, ids)
        except grpc.RpcError as error:
            why = error_of(load.admin.target, error)
            lines.append(f"what --{option.replace('_', '-')} has written may be left in the server: {why}")
    return lines
