"""What a request costs is split by the innermost frame of ours, and nothing of it is lost."""

import pytest

from fathom.benchmarks.systems.stages import GRPC, GRPC_THREADS, POLLER, split

SAMPLES = """\
MainThread;run (fathom/serving/loop.py:9);call (fathom/serving/guard.py:88);RequestDecoder.query (fathom/serving/request_decoder.py:53) 30
MainThread;run (fathom/serving/loop.py:9);call (fathom/serving/guard.py:88) 10
MainThread;run (fathom/serving/loop.py:9);Runner.run (asyncio/runners.py:118) 60
fathom-engine;Batcher._work (fathom/runtime/batcher.py:1);FlatRetriever.search (fathom/runtime/retriever.py:3);run (onnxruntime/x.py:4) 25
fathom-engine;Batcher._work (fathom/runtime/batcher.py:1);OnnxEngine.run (fathom/runtime/engines/onnx.py:3);run (onnxruntime/x.py:4) 75
fathom-engine;Batcher._next (fathom/runtime/batcher.py:1);Condition.wait (threading.py:3) 900
"""  # noqa: E501


def test_a_request_is_split_by_what_is_ours() -> None:
    spent = split(SAMPLES, {"loop": 200, "engine": 100, "poller": 20, "grpc": 30})
    assert spent == {
        "read the message": pytest.approx(60),
        "the rest of the way": pytest.approx(20),
        GRPC: pytest.approx(120),
        "search": pytest.approx(25),
        "engine": pytest.approx(75),
        POLLER: 20,
        GRPC_THREADS: 30,
    }


def test_the_time_of_a_thread_that_was_never_sampled_is_not_lost() -> None:
    spent = split("", {"loop": 200, "engine": 100, "poller": 20, "grpc": 30})
    assert spent == {GRPC: 200, "batches": 100, POLLER: 20, GRPC_THREADS: 30}
