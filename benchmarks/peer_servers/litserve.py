"""LitServe: FastAPI in one process, the engines in another. HTTP."""

import sys
from typing import Annotated

import litserve
from fastapi import Depends, Request, Response

from fathom.benchmarks.peer_servers.messages import answers
from fathom.benchmarks.peer_servers.ready import answers_http, tell_when_ready
from fathom.benchmarks.peer_servers.recommender import Recommender
from fathom.benchmarks.ports import free_port

PATH = "/predict"


async def body(request: Request) -> bytes:
    """The message of a call, as it is: without this LitServe reads JSON."""
    return await request.body()


class Answers(litserve.LitAPI):
    """What LitServe calls, all but ``body`` in the process with the engines."""

    def __init__(self, bundle: str, batch: int, wait_ms: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=wait_ms / 1e3, api_path=PATH)
        self._bundle = bundle

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Open everything."""
        self._recommender = Recommender.open(self._bundle)

    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> bytes:
        """The message."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """A batch is a list."""
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        """The answers of a batch."""
        return answers(self._recommender, x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """An answer for each request."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The answer, as it is."""
        return Response(output)


if __name__ == "__main__":
    api = Answers(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    port = free_port()
    tell_when_ready(port, answers_http("/health"))
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run("127.0.0.1", port, num_api_servers=1, log_level="error", generate_client_file=False)
