"""Messages are taken apart as protobuf would, before any of them is decoded."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.wire import parts_of

EVENTS = pb.AppendEventsRequest.EVENTS_FIELD_NUMBER
FIELDS = st.lists(
    st.one_of(
        st.builds(lambda text: pb.AppendEventsRequest(user_id=text).SerializeToString(), st.text(max_size=20)),
        st.builds(
            lambda text, time: pb.AppendEventsRequest(
                events=[pb.Event(event_id=text, timestamp=time)]
            ).SerializeToString(),
            st.text(max_size=300),
            st.integers(-(2**63), 2**63 - 1),
        ),
        # Unknown fields of every wire type.
        st.sampled_from([b"\x78\x96\x01", b"\x79" + bytes(8), b"\x7d" + bytes(4), b"\x7a\x02ab"]),
    ),
    max_size=20,
)


@given(FIELDS)
def test_the_parts_and_the_rest_are_the_whole_message(fields: list[bytes]) -> None:
    raw = b"".join(fields)
    whole = pb.AppendEventsRequest.FromString(raw)
    parts, rest = parts_of(raw, EVENTS, 100)
    assert [pb.Event.FromString(bytes(part)) for part in parts] == list(whole.events)
    assert pb.AppendEventsRequest.FromString(rest).user_id == whole.user_id


@given(
    st.one_of(st.binary(max_size=60), st.builds(lambda fields, cut: b"".join(fields)[:cut], FIELDS, st.integers(0, 90)))
)
def test_what_protobuf_can_read_can_be_taken_apart_and_all_else_is_refused(raw: bytes) -> None:
    try:
        whole = pb.AppendEventsRequest.FromString(raw)
    except DecodeError:
        whole = None
    try:
        parts, rest = parts_of(raw, EVENTS, 100)
        found = [pb.Event.FromString(bytes(part)) for part in parts]
        user_id = pb.AppendEventsRequest.FromString(rest).user_id
    except (InvalidRequestError, DecodeError):
        groups = any(byte & 7 in (3, 4) for byte in raw)
        assert whole is None or groups
    else:
        assert whole is not None
        assert (found, user_id) == (list(whole.events), whole.user_id)


def test_a_message_of_millions_of_parts_or_fields_is_not_read_to_its_end() -> None:
    assert len(parts_of(b"\x12\x00" * 2_000_000, EVENTS, 10)[0]) == 11
    with pytest.raises(InvalidRequestError, match="cannot be decoded"):
        parts_of(b"\x78\x00" * 2_000_000, EVENTS, 10)
