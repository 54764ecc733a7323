"""Sends a returning user to the replica that remembers the history."""

import pickle
from typing import Any

from google.protobuf.message import DecodeError
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from fathom.client import affinity
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.recommend import METHOD


class AffinityRouter(ConsistentHashRouter):
    """Ray's consistent hashing, by ``session_id`` in the metadata, else as ``fathom.client`` hashes requests.

    When a replica is lost or added, only the users of its share of the ring move. Where a replica has as many requests
    as it may have, the next one on the ring gets them. What has no key is spread evenly.
    """

    def _routing_key(self, pending_request: Any) -> str | None:
        if pending_request is not None and not pending_request.metadata.session_id:
            key = key_of(pending_request.metadata.call_method, pending_request.args)
            if key:
                return key
        routing_key: str | None = super()._routing_key(pending_request)
        return routing_key


def key_of(method: str, args: Any) -> str:
    """What a user's requests have in common, "" where there is nothing. ``args``: Ray's, of a call from its proxy."""
    if method != METHOD or not args or not isinstance(args[0], bytes):
        return ""
    try:
        # The proxy has pickled it itself, for the replica.
        request = pb.RecommendRequest.FromString(pickle.loads(args[0]).user_request_proto)
    except (DecodeError, AttributeError, TypeError):
        return ""  # the replica says what is wrong with it
    return affinity.key_of(request)
