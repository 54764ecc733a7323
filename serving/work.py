"""How much a request asks for, which is known before any of it is done; and what a batch may ask for.

The limits are those of the comments in ``recommender.proto``.
"""

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from fathom.errors import InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.reasons import MOST_LEFT_OUT
from fathom.runtime.rules import looked_at
from fathom.serving.guard import undecodable
from fathom.serving.limits import DEFAULT_K, LARGEST_K

#: What a plain request asks for, at most: items of the ranking that are looked at, and items that it names.
PLAIN_ITEMS, PLAIN_IDS = 100, 1_000
#: A message of so many bytes is read in well below a millisecond, whatever it holds.
LIGHT_BYTES = 16_384
LARGEST_REQUEST_BYTES = 512 * 1024
#: Requests of a batch, and the plain requests that ask for as much as all of them.
LARGEST_BATCH = 1_024
#: What is read of a large message without a pause: messages in it, and their bytes.
FEW, FEW_BYTES = 128, 16_384


def request_of(raw: bytes | memoryview) -> pb.RecommendRequest:
    """Decode a request; raises InvalidRequestError where it is too large, or none."""
    if len(raw) > LARGEST_REQUEST_BYTES:
        raise InvalidRequestError(
            f"the request has {len(raw):,} bytes, at most {LARGEST_REQUEST_BYTES:,}; send only the newest items of the"
            " history, and shorter lists"
        )
    try:
        return pb.RecommendRequest.FromString(raw)  # type: ignore[arg-type]  # the stubs know no memoryview
    except DecodeError:
        raise undecodable() from None


def is_light(request: pb.RecommendRequest) -> bool:
    """Whether the event loop has done its part of a request in a fraction of a millisecond."""
    if request.HasField("depth") and not request.depth and (request.include_reasons or request.rules.diversity):
        return False  # Depth 0 is not the engine's.
    few = request.k <= PLAIN_ITEMS and not request.HasField("rules") and not request.HasField("filter")
    return (few and len(request.item_ids) <= PLAIN_IDS) or pieces_of(request) == 1


def pieces_of(request: pb.RecommendRequest) -> int:
    """As how many plain requests one counts, but for the engine's runs."""
    seen = min(request.k or DEFAULT_K, LARGEST_K)
    if request.HasField("rules"):
        seen = looked_at(seen, capped=bool(request.rules.caps), diverse=bool(request.rules.diversity))
    named = len(request.item_ids)
    if request.HasField("filter"):
        named += len(request.filter.exclude_item_ids) + len(request.filter.allow_item_ids)
    return max(1, -(-seen // PLAIN_ITEMS), -(-named // PLAIN_IDS))


def work_of(request: pb.RecommendRequest) -> int:
    """As how many plain requests one counts: its pieces, and the further runs of the engine that its reasons take."""
    pieces = pieces_of(request)
    if not request.include_reasons:
        return pieces
    # What a user's history holds is not known yet.
    left_out = min(len(request.item_ids), MOST_LEFT_OUT) if request.item_ids else MOST_LEFT_OUT
    return pieces + 1 + left_out


def few_of(parts: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    """The messages in a message, as many at a time as are read without a pause."""
    low = size = 0
    for place, part in enumerate(parts):
        if place > low and (size + len(part) > FEW_BYTES or place - low == FEW):
            yield parts[low:place]
            low, size = place, 0
        size += len(part)
    if low < len(parts):
        yield parts[low:]
