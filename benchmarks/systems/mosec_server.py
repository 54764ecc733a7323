"""The same engines behind mosec, in batches as Fathom's: python -m ... BUNDLE; prints its port when it serves."""

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from mosec import Server, Worker  # type: ignore[import-not-found]

from fathom.benchmarks.systems.by_hand import ByHand
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle

#: As in Fathom's default profile.
MOST_IN_A_BATCH = 32
#: Milliseconds that a batch waits for more, the least there is.
WAIT_MS = 1
#: Tells the process of the worker which bundle it serves.
BUNDLE = "BENCHMARK_BUNDLE"


class Recommender(Worker):  # type: ignore[misc]
    """The process with the engines."""

    def __init__(self) -> None:
        self._by_hand = ByHand(Bundle.open(Path(os.environ[BUNDLE])))

    def deserialize(self, data: bytes) -> pb.RecommendRequest:
        """A request from the body of a call."""
        return pb.RecommendRequest.FromString(data)

    def serialize(self, data: pb.RecommendResponse) -> bytes:
        """The body of an answer."""
        return data.SerializeToString()

    def forward(self, data: list[pb.RecommendRequest]) -> list[pb.RecommendResponse]:
        """The answers of a batch."""
        return self._by_hand.run(data)


def serve(bundle: str) -> None:
    """Until it is ended."""
    os.environ[BUNDLE] = bundle
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    # What mosec logs on the standard output is not for who waits for the port.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_tell, args=(port, told), daemon=True).start()
    server = Server()
    server.append_worker(Recommender, num=1, max_batch_size=MOST_IN_A_BATCH, max_wait_time=WAIT_MS)
    server.run()


def _tell(port: int, told: TextIO) -> None:
    """Say the port once a connection is accepted, which is when the worker is ready."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            print(port, file=told, flush=True)
            return


if __name__ == "__main__":
    serve(sys.argv[1])
