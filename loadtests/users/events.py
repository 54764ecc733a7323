"""Users who write histories: of invented users only, who are deleted when the test stops."""

import random
import time
from collections.abc import Iterator

from locust import task

from fathom.loadtests.users.calling import GrpcUser
from fathom.loadtests.users.invented import USER_IDS
from fathom.loadtests.users.load_run import MARK, LoadRun
from fathom.protos.fathom.v1 import recommender_pb2 as pb

EVENTS, MESSAGES = 5, 10


def _events(load: LoadRun) -> pb.AppendEventsRequest:
    """New events of one of the invented users, of items that real users have had."""
    now = int(time.time())
    events = [
        pb.Event(event_id=f"{MARK}-{random.getrandbits(64):016x}", item_id=load.item(), timestamp=now)
        for _ in range(EVENTS)
    ]
    return pb.AppendEventsRequest(user_id=random.choice(USER_IDS), events=events)


class WritesEvents(GrpcUser):
    """Needs a server that keeps histories."""

    abstract = True
    asks_for = "write_events"
    because = "it writes events of invented users into the store of histories"


class AppendEventsUser(WritesEvents):
    """Appends a few events to a user's history."""

    weight = 3

    @task
    def append(self) -> None:
        """One message."""
        self.call("AppendEvents", _events(self.load))


class AppendEventStreamUser(WritesEvents):
    """Appends to the histories of several users in one call, which is answered at its end."""

    weight = 1

    @task
    def append(self) -> None:
        """One stream of messages."""

        def messages() -> Iterator[pb.AppendEventsRequest]:
            for _ in range(MESSAGES):
                yield _events(self.load)

        self.call("AppendEventStream", messages())


class DeleteUserUser(WritesEvents):
    """Appends events and deletes their user."""

    weight = 1

    @task
    def delete(self) -> None:
        """One user."""
        request = _events(self.load)
        self.call("AppendEvents", request)
        self.call("DeleteUser", pb.DeleteUserRequest(user_id=request.user_id))
