"""Fathom's messages in and out, for servers whose environment has the protobuf that they need."""

from collections.abc import Sequence

from fathom.benchmarks.peer_servers.recommender import Asked, K, Recommended, Recommender
from fathom.protos.fathom.v1 import recommender_pb2 as pb


def asked(request: pb.RecommendRequest) -> Asked:
    """What a request asks for."""
    return Asked(request.item_ids, request.depth, request.k or K)


def responses(recommender: Recommender, requests: Sequence[pb.RecommendRequest]) -> list[pb.RecommendResponse]:
    """The answers of a batch."""
    batch = [asked(request) for request in requests]
    return [_response(*pair) for pair in zip(batch, recommender.run(batch), strict=True)]


def answers(recommender: Recommender, messages: Sequence[bytes]) -> list[bytes]:
    """The encoded answers of a batch of encoded requests."""
    requests = [pb.RecommendRequest.FromString(message) for message in messages]
    return [response.SerializeToString() for response in responses(recommender, requests)]


def _response(asked: Asked, found: Recommended) -> pb.RecommendResponse:
    items = [pb.Item(id=item, score=score) for item, score in zip(*found, strict=True)]
    return pb.RecommendResponse(items=items, depth=asked.depth)
