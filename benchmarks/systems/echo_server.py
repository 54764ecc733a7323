"""A bare gRPC server that answers everything with the same message: python -m ... MESSAGE-IN-HEX."""

import asyncio
import sys
from typing import Any

import grpc

from fathom.protos.fathom.v1 import recommender_pb2 as pb


async def echo(answer: bytes) -> None:
    """A bare server that answers everything with the same message; prints its port, runs until it is ended."""
    response = pb.RecommendResponse.FromString(answer)

    async def call(request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:  # noqa: ARG001
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        call, pb.RecommendRequest.FromString, pb.RecommendResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("fathom.v1.Recommender", {"Recommend": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(echo(bytes.fromhex(sys.argv[1])))
