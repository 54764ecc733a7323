"""The page of a ranking: whole, by itself, readable, and true to the ranking."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from fathom.importance.lattice.lattice import Lattice, masks_on_the_way, measure_lattice
from fathom.importance.lattice.values import best_chain, layers_of
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.rank import rank_layers
from fathom.importance.registry import load_methods
from fathom.importance.report.lattice import ticks
from fathom.importance.report.page import RANKS, TAUS, contrast, number, page, shade, write_page
from fathom.importance.report.plot import plot_ranking
from fathom.importance.toy import GatedToy, toy_batches

GATES = [1.0, 0.5, 0.0, 0.7]


class Fixed:
    """A method that returns what it is given."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def scores(self, *_: object) -> Tensor:
        return self.rows


class Read(HTMLParser):
    """Checks that every element is closed, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data + " "

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


@pytest.fixture(scope="module")
def lattice(tmp_path_factory: pytest.TempPathFactory) -> Lattice:
    return measure_lattice(GatedToy(GATES), toy_batches(2, 8), tmp_path_factory.mktemp("page") / "lattice", about={})


@pytest.fixture(scope="module")
def ranking(lattice: Lattice) -> LayerRanking:
    methods = load_methods(["ablation", "block_influence", "activation"])
    return rank_layers(GatedToy(GATES), toy_batches(2, 8), methods, lattice=lattice, checkpoint="c0ffee" * 10)


def test_the_page_is_written_whole_and_holds_all_parts(lattice: Lattice, ranking: LayerRanking, tmp_path: Path) -> None:
    path = tmp_path / "new" / "ranking.html"
    write_page(replace(ranking, left_out={"attention": "no weights"}), path, lattice=lattice, depths=(1, 2, 4))
    assert [file.name for file in path.parent.iterdir()] == ["ranking.html"]
    text = Read(path.read_text()).text
    parts = ["Consensus", "Borda", "Kemeny", "Tiers", "Scores", "block influence", "Agreement", "Methods", "stability"]
    parts += ["tau with the truth", "Subsets of layers", "best chain", "NDCG@10", "Left out", "attention no weights"]
    for part in parts:
        assert part in text
    assert "layers 4 methods 3 users 16 seed 0 checkpoint c0ffeec0ffee data set unknown" in text


def test_the_page_needs_nothing_else_and_runs_nothing(lattice: Lattice, ranking: LayerRanking) -> None:
    text = page(ranking, lattice=lattice, depths=(1, 4))
    read = Read(text)
    assert {"script", "link", "img", "iframe", "object", "use", "image"}.isdisjoint(read.tags)
    names = {name for name, _ in read.attributes}
    assert {"src", "href", "srcset", "xlink:href"}.isdisjoint(names)
    assert not any(name.startswith("on") for name in names)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_equal_rankings_give_equal_pages(lattice: Lattice, ranking: LayerRanking) -> None:
    assert page(ranking, lattice=lattice, depths=(1, 4)) == page(ranking, lattice=lattice, depths=(1, 4))


def test_names_and_reasons_are_escaped() -> None:
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    hostile = "<script>alert('x')</script>\""
    ranking = rank_layers(GatedToy(GATES), toy_batches(1, 8), {hostile: Fixed(rows), "b": Fixed(rows)})
    text = page(replace(ranking, left_out={"<i>": hostile}, checkpoint='"><b>'))
    read = Read(text)
    assert not {"script", "b>"} & set(read.tags)
    assert "<i>" not in text
    assert read.text.count("<script>alert('x')</script>") >= 3


def test_scores_intervals_and_tiers_are_those_of_the_ranking(ranking: LayerRanking) -> None:
    read = Read(page(ranking))
    said = [value for name, value in read.attributes if name == "title"]
    method = ranking.methods["ablation"]
    cell = f"ablation, layer 3: {method.scores[3]:.4g}, 95 % interval {method.low[3]:.4g} to {method.high[3]:.4g}"
    assert cell in said
    layer = ranking.consensus_order[0]
    shares = " ".join(f"{ranking.tiers[tier][layer]:.2f}" for tier in ("critical", "middle", "redundant"))
    assert f"layer {layer} critical {shares} 1 " in read.text


def test_the_best_chain_is_drawn(lattice: Lattice, ranking: LayerRanking) -> None:
    text = page(ranking, lattice=lattice, depths=(2, 4))
    utilities = lattice.mean("loss")
    mask = best_chain(utilities, (2, 4))[0]
    assert f"best chain at 2: {utilities[mask]:.4f}, layers {' '.join(map(str, layers_of(mask)))}" in text
    assert text.count('title="added"') == 2 * 4
    assert text.count('title="kept"') == 2 * 2


def test_a_sample_has_no_frontier_and_says_so(tmp_path: Path) -> None:
    order = [0, 1, 2, 3]
    masks, about = masks_on_the_way([order]), {"orders": [order]}
    sample = measure_lattice(GatedToy(GATES), toy_batches(1, 4), tmp_path / "l", masks=masks, about=about)
    graded = rank_layers(GatedToy(GATES), toy_batches(1, 4), load_methods(["ablation"]), lattice=sample)
    text = page(graded, lattice=sample, depths=(1, 4))
    assert "8 of 16 subsets of layers, sampled. Without every subset there is no frontier" in Read(text).text
    assert "Shapley values, estimated from 8 of 16 subsets of layers, sampled" in Read(text).text
    assert not re.search("<svg|regret|nan", text, re.IGNORECASE)


def test_an_old_ranking_and_one_method_have_a_page_too(ranking: LayerRanking) -> None:
    old = replace(ranking, kemeny_order=None, tiers={}, consensus_stability=None, grades={})
    text = Read(page(old)).text
    assert "Tiers" not in text
    assert "No Kemeny order" in text
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    alone = rank_layers(GatedToy(GATES), toy_batches(1, 8), {"one": Fixed(rows)})
    assert "Agreement" not in Read(page(alone)).text


def test_ink_is_readable_on_every_colour() -> None:
    for stops in (RANKS, TAUS):
        for share in range(101):
            found = re.findall("#(..)(..)(..)", shade(stops, share / 100))
            back, ink = ([int(part, 16) for part in colour] for colour in found)
            assert contrast(back, ink) >= 4.5


def test_numbers_are_never_minus_zero_and_ticks_are_round() -> None:
    assert [number(value) for value in (-0.001, -0.5, 0.0, None)] == ["0.00", "-0.50", "0.00", "–"]
    assert ticks(0.02, 0.13) == [0.02, 0.04, 0.06, 0.08, 0.1, 0.12]
    assert ticks(-7.9, -4.1) == [-7, -6, -5]


def test_many_methods_with_long_names_fit_the_picture(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = ["representational_geometry_of_hidden_states", *(f"method_{place}" for place in range(7))]
    methods = {name: Fixed(torch.randn(8, 4, generator=generator)) for name in names}
    plot_ranking(rank_layers(GatedToy(GATES), toy_batches(1, 8), methods), tmp_path / "ranking.png")
    picture = imread(tmp_path / "ranking.png")
    for edge in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]):
        assert (edge == 1).all()
