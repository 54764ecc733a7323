"""Ray Serve: its gRPC proxy in one process, a replica in another, which makes the batches."""

import signal
import sys
from threading import Event
from typing import Any

import grpc
from ray import serve

from fathom.benchmarks.peer_servers.messages import answers
from fathom.benchmarks.peer_servers.ready import own_stdout
from fathom.benchmarks.peer_servers.recommender import Recommender
from fathom.benchmarks.ray_cluster import ray_cluster

CONTRACT = "fathom.benchmarks.peer_servers.ray_serve:add_recommender"
SERVICE, METHOD = "fathom.v1.Recommender", "Recommend"
#: As Fathom's own application on Ray Serve.
MAX_ONGOING = 256


def add_recommender(servicer: Any, server: Any) -> None:  # noqa: ARG001
    """What Ray's proxy is told: messages stay encoded on their way, since it cannot pickle those of Fathom."""

    # Ray puts its own behaviour into each handler's place.
    def handlers() -> dict[str, Any]:
        return {METHOD: grpc.unary_unary_rpc_method_handler(_replaced)}

    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers()),))
    server.add_registered_method_handlers(SERVICE, handlers())


def _replaced(request: bytes, context: Any) -> bytes:
    raise NotImplementedError


class Answers:
    """The replica."""

    def __init__(self, bundle: str, batch: int, wait_ms: float) -> None:
        recommender = Recommender.open(bundle)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=wait_ms / 1e3)
        async def batched(messages: list[bytes]) -> list[bytes]:
            return answers(recommender, messages)

        self._batched: Any = batched

    async def Recommend(self, message: bytes) -> "Encoded":
        """The answer of one call."""
        return Encoded(await self._batched(message))


class Encoded(bytes):
    """An answer that is encoded already; Ray asks it to do that."""

    def SerializeToString(self) -> bytes:
        """The answer, as it is."""
        return bytes(self)


def run(bundle: str, batch: int, wait_ms: float) -> None:
    """Until it is ended."""
    ended, told = Event(), own_stdout()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with ray_cluster(contract=CONTRACT) as address:
        # Without a decorator the class keeps its name, by which replicas import it.
        deployment = serve.deployment(num_replicas=1, max_ongoing_requests=MAX_ONGOING)(Answers)
        serve.run(deployment.bind(bundle, batch, wait_ms), logging_config={"log_level": "ERROR"})
        print(address.rpartition(":")[2], file=told, flush=True)
        ended.wait()


if __name__ == "__main__":
    # By its name, since replicas import what they run.
    from fathom.benchmarks.peer_servers import ray_serve

    ray_serve.run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
