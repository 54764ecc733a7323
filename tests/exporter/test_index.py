"""An index is made, measured beside the flat search, refused where it is worse than allowed, and then served."""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_process import fathom

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ArtefactError, BundleError, BundleSchemaError, ConfigError, ParityError
from fathom.exporter.bundle.index import IndexLimits, index_bundle
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.certification.certify import answering_files
from fathom.runtime import index_retriever
from fathom.runtime.bundle import Bundle, verify
from fathom.runtime.engines.open import open_engine
from fathom.runtime.index_retriever import IndexRetriever, open_retriever
from fathom.runtime.item_filter import ItemFilter
from fathom.runtime.live_catalogue import ItemRecord, LiveCatalogue
from fathom.runtime.manifest import CERTIFICATE_FILE, INDEX_FILE, IndexKind, depth_digests
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.retriever import FlatRetriever
from fathom.training.dataset import Dataset

KINDS: tuple[IndexKind, ...] = ("ivf", "hnsw", "pq")
ALL = IndexLimits(min_recall=0.5, max_loss=1.0)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny catalogue has 40 items."""
    monkeypatch.setattr(index_retriever, "FEW_ITEMS", 5)


@pytest.fixture(scope="module")
def dataset(tiny_build: Path) -> Dataset:
    return Dataset.load(tiny_build / "dataset")


@pytest.fixture(scope="module")
def indexed(tiny_build: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[IndexKind, Path]:
    """A bundle with an index of each kind."""
    folder = tmp_path_factory.mktemp("indexed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_retriever, "FEW_ITEMS", 5)
        for kind in KINDS:
            index_bundle(tiny_build / "bundle", dataset, folder / kind, kind, limits=ALL, lists=4)
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_with_an_index_opens_and_says_what_the_index_finds(
    indexed: dict[IndexKind, Path], tiny_build: Path, kind: IndexKind
) -> None:
    assert all(check.ok for check in verify(indexed[kind]))
    with Bundle.open(indexed[kind]) as bundle, Bundle.open(tiny_build / "bundle") as before:
        manifest, info = bundle.manifest, bundle.manifest.retrieval
        assert info is not None
        assert info.kind == kind
        assert info.recall.keys() == info.loss.keys() == manifest.depths.keys()
        assert all(0.5 <= each.value <= 1 for each in info.recall.values())
        assert CERTIFICATE_FILE not in manifest.files
        assert answering_files(manifest).keys() == {*answering_files(before.manifest), INDEX_FILE}
        # What each depth answers has changed, so no certificate of the bundle before holds for it.
        assert not set(depth_digests(manifest).values()) & set(list(depth_digests(before.manifest).values())[1:])
        assert isinstance(open_retriever(bundle), IndexRetriever)
        assert isinstance(open_retriever(before), FlatRetriever)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_answers_by_the_index_and_sees_what_is_added(
    indexed: dict[IndexKind, Path], kind: IndexKind
) -> None:
    async def answers(bundle: Bundle) -> tuple[list[list[int]], list[int]]:
        profile = load_profile("cloud")
        async with Pipeline(bundle, open_engine(bundle)) as pipeline:
            depth = bundle.depths[-1]
            asked = [IndexedQuery([item, item + 1], 8, profile, depth=depth) for item in range(10)]
            found = [(await pipeline.recommend(query)).indices.tolist() for query in asked]
            catalogue: LiveCatalogue = pipeline.catalogue
            like = catalogue.id(found[0][0])
            catalogue.apply(catalogue.prepare([ItemRecord("new", similar=(like,), boost=9.0)]), version=1)
            return found, (await pipeline.recommend(asked[0])).indices.tolist()

    with Bundle.open(indexed[kind]) as bundle:
        found, after = asyncio.run(answers(bundle))
        flat, _ = asyncio.run(answers(replace(bundle, manifest=bundle.manifest.model_copy(update={"retrieval": None}))))
    same = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(found, flat, strict=True)])
    assert same > 0.6
    assert all(len(each) == 8 and item not in each for item, each in enumerate(found))
    assert after[0] == 40


def test_the_same_index_built_twice_makes_the_same_bundle(
    indexed: dict[IndexKind, Path], tiny_build: Path, dataset: Dataset, tmp_path: Path
) -> None:
    for kind in KINDS:
        made = index_bundle(tiny_build / "bundle", dataset, tmp_path / kind, kind, limits=ALL, lists=4)
        assert (tmp_path / kind / INDEX_FILE).read_bytes() == (indexed[kind] / INDEX_FILE).read_bytes()
        with Bundle.open(indexed[kind]) as bundle:
            assert made.manifest.version == bundle.manifest.version


def test_a_slice_keeps_the_index_and_what_it_finds_at_its_depths(
    indexed: dict[IndexKind, Path], tmp_path: Path
) -> None:
    manifest = slice_bundle(indexed["ivf"], load_profile("mobile"), tmp_path / "slice")
    assert manifest.retrieval is not None
    assert manifest.retrieval.recall.keys() == manifest.depths.keys()
    with Bundle.open(tmp_path / "slice") as bundle:
        assert isinstance(open_retriever(bundle), IndexRetriever)


def test_an_index_that_finds_too_little_or_costs_too_much_is_refused_and_nothing_is_written(
    tiny_build: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ParityError, match=r"the index finds .* of the best 10 items .*, less than 110.00%"):
        index_bundle(tiny_build / "bundle", dataset, out, "ivf", limits=IndexLimits(min_recall=1.1), lists=4)
    with pytest.raises(ParityError, match=r"loses .* of NDCG@10 .*, more than -100.00%"):
        index_bundle(tiny_build / "bundle", dataset, out, "ivf", limits=IndexLimits(0.5, -1.0), lists=4)
    assert not out.exists()


def test_catalogues_that_need_none_and_other_data_are_refused(
    tiny_build: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out = tiny_build / "bundle", tmp_path / "out"
    with pytest.raises(ArtefactError, match="another data set"):
        index_bundle(bundle, replace(dataset, sha256="0" * 64), out, "ivf")
    with pytest.raises(ConfigError, match="--lists 41: at least 1, and at most the number of items, 40"):
        index_bundle(bundle, dataset, out, "ivf", lists=41)
    with pytest.raises(ConfigError, match="cannot replace the one"):
        index_bundle(bundle, dataset, bundle, "ivf")
    monkeypatch.setattr(index_retriever, "FEW_ITEMS", 40)
    result = fathom("bundle", "index", bundle, "--data", tiny_build / "dataset", "--out", out, code=2)
    assert "40 items are searched as fast without an index; it needs more than 40" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_index_of_these_items_is_refused_in_one_line(
    indexed: dict[IndexKind, Path], tmp_path: Path, kind: IndexKind, reseal: Callable[[Path], None]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(indexed[kind], path)
    whole = (path / INDEX_FILE).read_bytes()
    other = (indexed["ivf" if kind != "ivf" else "pq"] / INDEX_FILE).read_bytes()
    for data in (b"", b"IxFI", whole[:-40], other, whole[:4] + b"\xff" * (len(whole) - 4)):
        (path / INDEX_FILE).write_bytes(data)
        reseal(path)
        with Bundle.open(path) as bundle, pytest.raises(BundleError) as caught:
            open_retriever(bundle)
        assert str(path / INDEX_FILE) in str(caught.value)
        assert str(caught.value).isprintable()


def test_a_manifest_that_contradicts_its_index_is_refused(
    indexed: dict[IndexKind, Path], tmp_path: Path, reseal: Callable[[Path], None]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(indexed["ivf"], path)
    before = json.loads((path / "manifest.json").read_text())

    def level(wanted: int, effort: int) -> dict[str, int]:
        return {"wanted": wanted, "effort": effort, "candidates": 100}

    wrong = {
        "how they are searched": None,
        "more lists than it has": before["retrieval"] | {"levels": [level(10, 5)]},
        "less effort": before["retrieval"] | {"levels": [level(10, 3), level(30, 2)]},
        "fewer items than are wanted": before["retrieval"] | {"levels": [level(101, 3)]},
        "not measured at each depth": before["retrieval"] | {"recall": {}},
    }
    for words, value in wrong.items():
        (path / "manifest.json").write_text(json.dumps(before | {"retrieval": value}))
        reseal(path)
        with pytest.raises(BundleSchemaError, match=words):
            Bundle.open(path)


def test_the_command_writes_the_bundle_and_says_what_a_search_takes(
    tiny_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_retriever, "FEW_ITEMS", 5)
    out = tmp_path / "indexed"
    given = ["--data", tiny_build / "dataset", "--out", out, "--min-recall", "0.5", "--max-loss", "1", "--lists", "4"]
    result = fathom("bundle", "index", tiny_build / "bundle", *given)
    assert "by an index (pq)" in result.stdout
    assert "by the index and" in result.stderr
    with Bundle.open(out) as bundle:
        assert open_retriever(bundle).search(bundle.vectors.take(np.array([0])), [3], [ItemFilter()])[0][0][0] == 0
