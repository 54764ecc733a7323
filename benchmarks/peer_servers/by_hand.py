"""Bare grpc.aio: each request runs alone, in the event loop, at the depth that it asks for; no batches to set."""

import asyncio
import sys

from fathom.benchmarks.peer_servers.bare_grpc import serve
from fathom.benchmarks.peer_servers.messages import responses
from fathom.benchmarks.peer_servers.recommender import Recommender

if __name__ == "__main__":
    recommender = Recommender.open(sys.argv[1])
    asyncio.run(serve(lambda request: responses(recommender, [request])[0]))
