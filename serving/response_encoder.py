"""Encodes answers: the bytes of a RecommendResponse are joined from parts that are made once."""

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

import numpy as np

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.query import Answer
from fathom.runtime.reasons import MOST_EXPLAINED, MOST_REASONS, Source
from fathom.selector.choice import DepthReason
from fathom.serving.limits import DEFAULT_K

REASONS = {reason: getattr(pb, f"DEPTH_REASON_{reason.name}") for reason in DepthReason}
SOURCES: dict[Source, pb.ItemReason.Source] = {"counting": pb.ItemReason.COUNTING, "network": pb.ItemReason.NETWORK}
# Of the wire format: fields 1, 2 and 3 of Item, field 1 of what holds a response, and fields 1, 2 and 5 of that.
_ID, _SCORE, _TITLE, _FIRST = b"\x0a", b"\x15", b"\x1a", b"\x0a"
_REQUEST_ID, _ITEM, _WHY = b"\x0a", b"\x12", b"\x2a"
#: Items whose part of a response is kept.
KEPT_ITEMS = 65_536
_score = Struct("<f").pack
_SCORE_BYTES = 4
#: About how many bytes a response has beside its items, an item beside its id and title, a reason beside its item's id.
ANSWER_BYTES, ITEM_BYTES, REASON_BYTES = 400, 13, 12
#: Items whose sizes are looked at, to know the mean.
SAMPLED_ITEMS = 1_000


class ResponseEncoder:
    """Encodes the answers of one bundle, with ids and titles as its catalogue has them."""

    def __init__(self, bundle: Bundle, catalogue: LiveCatalogue) -> None:
        self._catalogue = catalogue
        self._items = _EncodedItems(catalogue, titled=False)
        self._titled_items = _EncodedItems(catalogue, titled=True)
        self._head = pb.RecommendResponse(bundle_version=bundle.manifest.version)
        self._id_bytes = _mean_bytes(bundle.catalogue.ids)
        self._title_bytes = _mean_bytes(bundle.catalogue.titles)
        self._retitled = 0

    def response(
        self,
        request: pb.RecommendRequest,
        answer: Answer,
        unknown: int,
        *,
        exact: bool = True,
        private: bool = False,
        experiments: Sequence[pb.ExperimentArm] = (),
    ) -> bytes:
        """The RecommendResponse for an Answer, encoded.

        ``exact``: with timings, which show what was cached. ``private``: without scores, nor what it says of the
        history. ``experiments``: that it is part of.
        The items are joined from bytes that are made once: building a message of ten items costs as much as the rest.
        """
        message = self._headed(answer, unknown)
        if not exact:
            message.ClearField("timings")
        if private:
            message.history_used = message.unknown_items = 0
            message.ClearField("complexity")
        head = message.SerializeToString() + _WHY + _text(answer.choice.why)
        if request.request_id:
            head += _REQUEST_ID + _text(request.request_id)
        if experiments:
            head += pb.RecommendResponse(experiments=experiments).SerializeToString()
        if self._retitled != self._catalogue.retitled:
            self._retitled = self._catalogue.retitled
            self._titled_items.clear()
        indices, scores = answer.indices, answer.scores
        if private:
            # Whoever may send any history could search for the one that gives exactly these scores.
            scores = np.zeros_like(scores)
        if answer.reasons:
            explained = self._explained(answer, titled=request.include_titles)
            head += pb.RecommendResponse(items=explained).SerializeToString()
            indices, scores = indices[len(answer.reasons) :], scores[len(answer.reasons) :]
        items = self._titled_items if request.include_titles else self._items
        pairs = zip(indices.tolist(), scores.tolist(), strict=True)
        return head + b"".join([items[index] + _score(score) for index, score in pairs])

    def _headed(self, answer: Answer, unknown: int) -> pb.RecommendResponse:
        """A response's numbers: one message that is filled anew each time, at half the cost of a new one.

        No text: a message keeps every text that was ever put into it for as long as it lives.
        """
        head, timings = self._head, self._head.timings
        choice, timing = answer.choice, answer.timing
        head.depth = choice.depth
        head.reason = REASONS[choice.reason]
        if choice.complexity is None:
            head.ClearField("complexity")
        else:
            head.complexity = choice.complexity
        head.history_used = answer.history_used
        head.unknown_items = unknown
        head.catalogue_version = answer.catalogue_version
        timings.select_us = timing.select_us
        timings.queue_us = timing.queue_us
        timings.engine_us = timing.engine_us
        timings.retrieval_us = timing.retrieval_us
        timings.total_us = timing.total_us
        return head

    def _explained(self, answer: Answer, *, titled: bool) -> Iterator[pb.Item]:
        """The items of an answer that have reasons, the first."""
        name, title = self._catalogue.id, self._catalogue.title
        first = slice(len(answer.reasons))
        rows = zip(answer.indices[first].tolist(), answer.scores[first].tolist(), answer.reasons, strict=True)
        for index, score, reasons in rows:
            item = pb.Item(id=name(index), score=score, title=title(index) if titled else "")
            for each in reasons:
                item.reasons.add(item_id=name(each.item), source=SOURCES[each.source], amount=each.amount)
            yield item

    def answer_bytes(self, request: pb.RecommendRequest) -> int:
        """About how many bytes the response to a request has, of items of the mean size."""
        k = min(request.k or DEFAULT_K, len(self._catalogue))
        reasons = min(k, MOST_EXPLAINED) * MOST_REASONS * (self._id_bytes + REASON_BYTES)
        item_bytes = self._id_bytes + self._title_bytes * request.include_titles + ITEM_BYTES
        return ANSWER_BYTES + k * item_bytes + reasons * request.include_reasons


def result_of(response: bytes) -> bytes:
    """The RecommendResult that holds a RecommendResponse, both encoded."""
    return _FIRST + _varint(len(response)) + response


def batch_of(results: Iterable[bytes]) -> bytes:
    """The RecommendBatchResponse of such results, all encoded."""
    return b"".join(_FIRST + _varint(len(result)) + result for result in results)


class _EncodedItems(dict[int, bytes]):
    """Items in a response by their index, up to the score, which comes last; made when first asked for."""

    def __init__(self, catalogue: LiveCatalogue, *, titled: bool) -> None:
        super().__init__()
        self._catalogue = catalogue
        self._titled = titled

    def __missing__(self, index: int) -> bytes:
        title = self._catalogue.title(index) if self._titled else ""
        item = _ID + _text(self._catalogue.id(index)) + (_TITLE + _text(title) if title else b"") + _SCORE
        if len(self) >= KEPT_ITEMS:
            self.clear()
        encoded = self[index] = _ITEM + _varint(len(item) + _SCORE_BYTES) + item
        return encoded


def _mean_bytes(texts: Sequence[str]) -> int:
    """The mean size of texts, rounded up; of about SAMPLED_ITEMS evenly among them."""
    some = texts[:: max(1, len(texts) // SAMPLED_ITEMS)]
    return -(-sum(len(text.encode()) for text in some) // max(1, len(some)))


def _text(value: str) -> bytes:
    """A string on the wire, after its tag."""
    raw = value.encode()
    return _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    """A number on the wire: seven bits a byte, the lowest first."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
