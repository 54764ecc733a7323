"""mosec: a front in Rust, which makes the batches for one process of Python. HTTP."""

import os
import sys

from mosec import Server, Worker

from fathom.benchmarks.peer_servers.messages import answers
from fathom.benchmarks.peer_servers.ready import tell_when_ready
from fathom.benchmarks.peer_servers.recommender import Recommender
from fathom.benchmarks.ports import free_port

#: Tells the process of the worker which bundle it serves.
BUNDLE = "BENCHMARK_BUNDLE"


class Answers(Worker):
    """The process with the engines."""

    def __init__(self) -> None:
        self._recommender = Recommender.open(os.environ[BUNDLE])

    def deserialize(self, data: bytes) -> bytes:
        """The body of a call, as it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """The body of an answer, as it is."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """The answers of a batch."""
        return answers(self._recommender, data)


def serve(bundle: str, batch: int, wait_ms: int) -> None:
    """Until it is ended; mosec waits for a batch at least 1 ms."""
    os.environ[BUNDLE] = bundle
    port = free_port()
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    # mosec accepts connections once its worker is ready.
    tell_when_ready(port)
    server = Server()
    server.append_worker(Answers, num=1, max_batch_size=batch, max_wait_time=wait_ms)
    server.run()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
