"""What every user does: keeps a connection of its own, calls, and has each call recorded."""

import random
import time
from typing import Any, ClassVar

import grpc
from locust import User

from fathom.loadtests.steps import ANSWER, CALL
from fathom.loadtests.users.load_run import ADMIN, LoadRun, failure_text
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class GrpcUser(User):
    """Calls one RPC, thinks for a while, and calls again.

    ``asks_for``: the option without which its users do not run, "" where none is needed; ``because``: why.
    ``timeout_s``: of its calls; None: ``--deadline-ms``.
    """

    abstract = True
    asks_for: ClassVar[str] = ""
    because: ClassVar[str] = ""
    timeout_s: ClassVar[float | None] = None

    def wait_time(self) -> float:
        """Seconds until the next request: exponential, as independent people behave."""
        mean_s = self.environment.parsed_options.think_ms / 1e3
        return random.expovariate(1 / mean_s) if mean_s > 0 else 0.0

    def on_start(self) -> None:
        """One connection per user, as separate clients have, and one to the admin port if there is one."""
        self.load: LoadRun = self.environment.load_run
        ways = [self.load.connection]
        if self.load.admin is not self.load.connection:
            ways.append(self.load.admin)
        self._channels = [each.channel([("grpc.use_local_subchannel_pool", 1)]) for each in ways]
        stubs = [recommender_pb2_grpc.RecommenderStub(each) for each in self._channels]  # type: ignore[no-untyped-call]
        self._stub, self._admin_stub = stubs[0], stubs[-1]

    def on_stop(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()

    def begin(self, rpc: str, request: Any) -> Any:
        """Send a message, or an iterator of them; an answer, or an iterator of them, which can raise RpcError."""
        stub = self._admin_stub if rpc in ADMIN else self._stub
        timeout_s = self.load.deadline_s if self.timeout_s is None else self.timeout_s
        return getattr(stub, rpc)(request, timeout=timeout_s, metadata=self.load.connection.pairs)

    def call(self, rpc: str, request: Any) -> Any:
        """One call, recorded under the depth that answered it, or its status; the answer, None where there is none."""
        started = time.perf_counter()
        try:
            answer = self.begin(rpc, request)
        except grpc.RpcError as error:
            self.record_failed_call(rpc, error, started)
            return None
        how = f"depth {answer.depth}" if isinstance(answer, pb.RecommendResponse) else "OK"
        self.record(CALL, f"{rpc} {how}", started, size=answer.ByteSize())
        return answer

    def record_result(self, rpc: str, result: pb.RecommendResult, started: float) -> None:
        """One of many answers in a call."""
        if result.HasField("response"):
            self.record(ANSWER, f"{rpc} depth {result.response.depth}", started, size=result.ByteSize())
        else:
            status = STATUS_NAMES.get(result.error.code, str(result.error.code))
            self.record(ANSWER, f"{rpc} {status}", started, failure=failure_text(status, result.error.message))

    def record_failed_call(self, rpc: str, error: grpc.RpcError, started: float) -> None:
        """A call that has ended with an error."""
        status = error.code().name
        self.record(CALL, f"{rpc} {status}", started, failure=failure_text(status, error.details()))

    def record(self, kind: str, name: str, started: float, *, size: int = 0, failure: str | None = None) -> None:
        """Something that ends now and began at ``started``, on the clock of ``time.perf_counter``."""
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=(time.perf_counter() - started) * 1e3,
            response_length=size,
            exception=failure,
            context={},
        )
