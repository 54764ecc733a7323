"""BentoML: its adaptive batches. HTTP; WAIT-MS is the latency beyond which BentoML refuses requests."""

import os
import sys
from typing import Any

import bentoml
from _bentoml_sdk.io_models import IORootModel
from starlette.requests import Request
from starlette.responses import Response

from fathom.benchmarks.peer_servers.messages import answers
from fathom.benchmarks.peer_servers.ready import answers_http, tell_when_ready
from fathom.benchmarks.peer_servers.recommender import Recommender
from fathom.benchmarks.ports import free_port

BUNDLE, BATCH, WAIT_MS = "BENCHMARK_BUNDLE", "BENCHMARK_BATCH", "BENCHMARK_WAIT_MS"


class Message(IORootModel[list[bytes]]):
    """A message in a batch of one, as it is: without this BentoML reads and writes JSON."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> "Message":  # noqa: ARG003
        """The body of a call."""
        return cls([await request.body()])

    @classmethod
    async def to_http_response(cls, obj: list[bytes], serde: Any) -> Response:  # noqa: ARG003
        """The body of an answer."""
        return Response(obj[0])


Message.__root_input__ = True


@bentoml.service(workers=1)
class Answers:
    """The service."""

    def __init__(self) -> None:
        self._recommender = Recommender.open(os.environ[BUNDLE])

    @bentoml.api(
        route="/recommend",
        batchable=True,
        max_batch_size=int(os.environ.get(BATCH, "32")),
        max_latency_ms=int(os.environ.get(WAIT_MS, "1000")),
        input_spec=Message,
        output_spec=Message,
    )
    def recommend(self, messages: list[bytes]) -> list[bytes]:
        """The answers of a batch."""
        return answers(self._recommender, messages)


if __name__ == "__main__":
    os.environ |= dict(zip((BUNDLE, BATCH, WAIT_MS), sys.argv[1:], strict=True))
    os.environ |= {"BENTOML_DO_NOT_TRACK": "true"}
    from bentoml_cli.cli import cli

    chosen = free_port()
    tell_when_ready(chosen, answers_http("/readyz"))
    service = "fathom.benchmarks.peer_servers.bentoml:Answers"
    cli(["serve", service, "--host", "127.0.0.1", "--port", str(chosen), "--quiet"])
