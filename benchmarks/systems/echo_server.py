"""A bare gRPC server that answers everything with the same message: python -m ... MESSAGE-IN-HEX."""

import asyncio
import sys

from fathom.benchmarks.peer_servers.bare_grpc import serve
from fathom.protos.fathom.v1 import recommender_pb2 as pb

if __name__ == "__main__":
    echoed = pb.RecommendResponse.FromString(bytes.fromhex(sys.argv[1]))
    asyncio.run(serve(lambda _: echoed))
