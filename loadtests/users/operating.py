"""Users who do what operators and dashboards do."""

import random

from locust import task

from fathom.client import RELOAD_TIMEOUT_S
from fathom.loadtests.users.calling import GrpcUser
from fathom.loadtests.users.load_run import MARK
from fathom.protos.fathom.v1 import recommender_pb2 as pb


class GetBundleUser(GrpcUser):
    """Asks what is served."""

    weight = 1

    @task
    def get_bundle(self) -> None:
        """The default bundle."""
        self.call("GetBundle", pb.GetBundleRequest())


class ReloadUser(GrpcUser):
    """One operator, who has all bundles of the server's folder looked at again."""

    fixed_count = 1
    asks_for = "reload"
    because = "it makes the server take over what is new in its folder"
    timeout_s = RELOAD_TIMEOUT_S

    @task
    def reload(self) -> None:
        """All bundles."""
        self.call("Reload", pb.ReloadRequest())


class ReportOutcomesUser(GrpcUser):
    """Reports outcomes of a kind that no experiment is judged by, so that none of them is kept."""

    weight = 1
    asks_for = "experiments"
    because = "it needs a server that runs experiments"

    @task
    def report(self) -> None:
        """One outcome."""
        request_id = f"{MARK}-{random.getrandbits(64):016x}"
        outcome = pb.Outcome(request_id=request_id, kind=MARK, item_id=self.load.item())
        self.call("ReportOutcomes", pb.ReportOutcomesRequest(outcomes=[outcome]))


class ListExperimentsUser(GrpcUser):
    """Asks how experiments stand."""

    weight = 1
    asks_for = "experiments"
    because = "it needs a server that runs experiments"

    @task
    def list_experiments(self) -> None:
        """All of them."""
        self.call("ListExperiments", pb.ListExperimentsRequest())
