"""More calls at once than gRPC accepts by itself: they still end in a status of ours."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import grpc

from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.protos.fathom.v1 import recommender_pb2_grpc

# A server whose event loop stands still in GetBundle until a line of standard input, so that calls pile up unaccepted.
BLOCKED = """
import sys
from pathlib import Path
from fathom.serving import service
from fathom.serving.config import load_settings
from fathom.serving.process import serve

async def block(self, request, context):
    print("blocked", flush=True)
    sys.stdin.readline()
    return self.bundles.choose("").describe()

service.RecommenderService.GetBundle = block
settings = load_settings({"port": 0, "log_level": "error"}, environment={})
serve(settings, Path(sys.argv[1]), ready=lambda info: print(info.address, flush=True))
"""
CALLS = 4_000
OURS = {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_calls_that_pile_up_before_they_are_accepted_are_not_cancelled(synthetic_bundle: Path) -> None:
    program = [sys.executable, "-c", BLOCKED, str(synthetic_bundle)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with grpc.insecure_channel(process.stdout.readline().strip()) as channel:
            stub = recommender_pb2_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
            held = stub.GetBundle.future(pb.GetBundleRequest(), timeout=60)
            assert process.stdout.readline() == "blocked\n"
            request = pb.RecommendRequest(item_ids=["item-1"], depth=4)
            calls = [stub.Recommend.future(request, timeout=60) for _ in range(CALLS)]
            process.stdin.write("\n")
            process.stdin.flush()
            statuses = Counter(call.code() for call in calls)
            assert held.result().name == "synthetic"
        process.terminate()
    assert statuses[grpc.StatusCode.OK] > 0
    assert set(statuses) <= OURS, statuses
