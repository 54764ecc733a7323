"""A bare grpc.aio server with one method, Recommend."""

import logging
from collections.abc import Callable
from typing import Any

import grpc

from fathom.protos.fathom.v1 import recommender_pb2 as pb


async def serve(answer: Callable[[pb.RecommendRequest], pb.RecommendResponse]) -> None:
    """Prints its port, runs until it is ended."""

    async def call(request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:  # noqa: ARG001
        return answer(request)

    handler = grpc.unary_unary_rpc_method_handler(
        call, pb.RecommendRequest.FromString, pb.RecommendResponse.SerializeToString
    )
    # It logs each call whose client has not waited.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("fathom.v1.Recommender", {"Recommend": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()
