"""The searches that ship in the package are those that their builder describes, and find the same items."""

import numpy as np
import onnxruntime
import pytest

from fathom.exporter.engines.lookup_graph import lookup_graph
from fathom.exporter.engines.search_graph import search_graph
from fathom.runtime.engines.cuda import LOOKUP
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.item_vectors import ItemVectors
from fathom.runtime.retriever import CHUNK, DENSE_GRAPH, GRAPH_IN_CHUNKS, GRAPHS, FlatRetriever


def test_the_packaged_searches_are_what_their_builder_makes() -> None:
    for precision, path in GRAPHS.items():
        assert path.read_bytes() == search_graph(precision)
    assert DENSE_GRAPH.read_bytes() == search_graph(dense=True)
    assert GRAPH_IN_CHUNKS.read_bytes() == search_graph(chunk=CHUNK)
    assert LOOKUP.read_bytes() == lookup_graph()


@pytest.mark.parametrize(("items", "k"), [(1, 1), (3, 3), (4, 2), (5, 5), (17, 1), (17, 9), (64, 10), (64, 64)])
def test_a_search_in_chunks_finds_the_same(items: int, k: int) -> None:
    plain, chunks = (
        onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        for graph in (search_graph(), search_graph(chunk=4))
    )
    rng = np.random.default_rng(items)
    for masked in (False, True):
        for _ in range(20):
            places = np.unique(np.stack((rng.integers(0, 3, 6), rng.integers(0, items, 6)), axis=1), axis=0)
            feeds = {
                # Whole numbers, so that many scores are equal.
                "users": rng.integers(-2, 3, (3, 2)).astype(np.float32),
                "vectors": rng.integers(-2, 3, (items, 2)).astype(np.float32),
                "places": places,
                "added": rng.choice([-np.inf, 1, 2], len(places)).astype(np.float32),
                "shown": rng.random((3, items)) < 0.5 if masked else np.empty((0, 0), np.bool_),
                "masked": np.array(masked),
                "k": np.array([k]),
            }
            expected, found = (session.run(["values", "items"], feeds) for session in (plain, chunks))
            np.testing.assert_array_equal(found[0], expected[0])
            there = expected[0] > -np.inf
            np.testing.assert_array_equal(found[1][there], expected[1][there])


@pytest.mark.gpu
def test_a_gpu_finds_what_the_processor_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.runtime.engines.gpu import this_gpu

    if this_gpu() is None:
        pytest.skip("there is no CUDA device")
    monkeypatch.setattr("fathom.runtime.retriever.BLOCK_ITEMS_CUDA", 40_000)
    rng = np.random.default_rng(0)
    vectors = ItemVectors(rng.integers(-3, 4, (100_000, 8)).astype(np.float32))
    one, gpu = FlatRetriever(vectors), FlatRetriever(vectors, device="cuda")
    for rows in (1, 5):
        users = rng.integers(-3, 4, (rows, 8)).astype(np.float32)
        for mask in (None, rng.random(100_000) < 0.1, np.arange(100_000) == 7):
            keeps = [ItemFilter(exclude=rng.integers(0, 100_000, 50), mask=mask)] * rows
            bonus = np.arange(0, 100_000, 99), rng.integers(0, 9, 1_011).astype(np.float32)
            asked = users, [100] * rows, keeps, [bonus] * rows
            for (items, scores), (expected, best) in zip(gpu.search(*asked), one.search(*asked), strict=True):
                np.testing.assert_array_equal(scores, best)
                np.testing.assert_array_equal(items, expected)
