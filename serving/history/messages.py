"""Users and their events as messages say them: checked against their contract, and put in the place of a history."""

from collections.abc import Sequence

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.history.contract import StoredEvent
from fathom.serving.limits import LAST_SECOND_OF_9999, bad_second, check_id, check_type


def user_of(request: pb.RecommendRequest | pb.AppendEventsRequest | pb.DeleteUserRequest) -> str:
    """The user_id of a message; raises InvalidRequestError when there is none or it is too long."""
    check_id("user_id", request.user_id)
    return request.user_id


def stored_event(each: pb.Event) -> StoredEvent:
    """An event of a message; raises InvalidRequestError where it contradicts the contract."""
    event = StoredEvent(each.event_id, each.item_id, each.timestamp, each.type)
    check_id("event_id", event.event_id)
    check_id("item_id", event.item_id)
    if not 0 <= event.timestamp <= LAST_SECOND_OF_9999:
        raise bad_second("timestamp", event.timestamp)
    if event.type:
        check_type("type", event.type)
    return event


def use_history(request: pb.RecommendRequest, events: Sequence[StoredEvent]) -> None:
    """Put what is known of a request's user in the place of a history."""
    request.item_ids.extend(event.item_id for event in events)
    request.timestamps.extend(event.timestamp for event in events)
    if request.filter.seen_types:  # Nothing else asks for them.
        request.event_types.extend(event.type for event in events)
