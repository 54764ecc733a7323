"""Users who ask for recommendations, in the three ways that there are."""

import time
from collections.abc import Iterator

import grpc
from locust import task

from fathom.loadtests.steps import CALL, FIRST_ANSWER
from fathom.loadtests.users.calling import GrpcUser
from fathom.protos.fathom.v1 import recommender_pb2 as pb


class RecommendUser(GrpcUser):
    """Asks for one history at a time."""

    weight = 10

    @task
    def recommend(self) -> None:
        """One request."""
        self.call("Recommend", self.load.request())


class RecommendBatchUser(GrpcUser):
    """Asks for ``--batch-size`` histories in a message; every answer in it is listed too, as late as the message."""

    weight = 1

    @task
    def batch(self) -> None:
        """One batch."""
        requests = [self.load.request() for _ in range(self.load.options.batch_size)]
        started = time.perf_counter()
        answer = self.call("RecommendBatch", pb.RecommendBatchRequest(requests=requests))
        for result in answer.results if answer else ():
            self.record_result("RecommendBatch", result, started)


class RecommendStreamUser(GrpcUser):
    """Sends ``--stream-size`` histories into a stream at once, and lists each answer from when its request was sent."""

    weight = 2

    @task
    def stream(self) -> None:
        """One stream, with the time to its first answer."""
        sent: dict[str, float] = {}

        def requests() -> Iterator[pb.RecommendRequest]:
            for number in range(self.load.options.stream_size):
                request = self.load.request(str(number))
                sent[request.request_id] = time.perf_counter()
                yield request

        started = time.perf_counter()
        answers = self.begin("RecommendStream", requests())
        try:
            for number, result in enumerate(answers):
                if not number:
                    self.record(FIRST_ANSWER, "RecommendStream", started)
                which = result.response if result.HasField("response") else result.error
                self.record_result("RecommendStream", result, sent[which.request_id])
        except grpc.RpcError as error:
            self.record_failed_call("RecommendStream", error, started)
        else:
            self.record(CALL, "RecommendStream OK", started)
        finally:
            answers.cancel()
