"""The search that ships in the package is the one that its builder describes."""

from fathom.exporter.search_graph import search_graph
from fathom.runtime.retriever import GRAPH


def test_the_packaged_search_is_what_its_builder_makes() -> None:
    assert GRAPH.read_bytes() == search_graph()
