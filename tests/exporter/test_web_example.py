"""examples/web in a real browser answers what the server answers, from a bundle that was cut for a phone."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from browser import Page, browser, find_chromium
from shared import npm_packages

from fathom.client import Client
from fathom.edge_profiles.profile import load_profile
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.bundle.slice import slice_bundle
from fathom.local import running_server
from fathom.runtime.bundle import Bundle
from fathom.runtime.item_vectors import ItemPrecision, ItemVectors
from fathom.runtime.manifest import VECTORS_FILE

EXAMPLE = Path(__file__).parents[2] / "examples" / "web"
CHROMIUM = find_chromium()
USERS = 50
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node is not installed"),
]


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a line for each of them."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, counting_bundle: Path
) -> Iterator[tuple[Path, str]]:
    """The folder of the example with what npm installs and a bundle for each precision of item vectors; its address."""
    folder = tmp_path_factory.mktemp("web") / "site"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(npm_packages(request, EXAMPLE))
    slice_bundle(counting_bundle, load_profile("mobile"), folder / "fp32")
    precisions: tuple[ItemPrecision, ...] = ("fp16", "int8")
    for precision in precisions:
        with Bundle.open(folder / "fp32") as bundle:
            rows = ItemVectors.store(np.asarray(bundle.vectors), precision).rows
            np.save(folder / "rows.npy", rows)
            new = {VECTORS_FILE: (folder / "rows.npy").read_bytes()}
            derive_bundle(bundle, folder / precision, new, item_precision=precision)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def opened(page: Page, address: str, bundle: str) -> None:
    page.complaints.clear()
    page.size(900)
    page.open(f"{address}/?bundle={bundle}")
    page.until("window.bundle")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_fifty_users_get_the_same_ten_items_as_from_the_server(
    site: tuple[Path, str], page: Page, precision: str
) -> None:
    folder, address = site
    rng = np.random.default_rng(0)
    with Bundle.open(folder / precision) as bundle:
        ids, depths = bundle.catalogue.ids, bundle.manifest.served_depths
        longest = bundle.manifest.model.max_history
    opened(page, address, precision)
    with running_server(folder / precision) as server, Client(server.address) as client:
        for user in range(USERS):
            length = int(rng.integers(1, longest + 8))
            history = [ids[item] for item in rng.integers(0, len(ids), length)] + ["unknown"]
            times = (1_600_000_000 + np.cumsum(rng.integers(60, 90_000, len(history)))).tolist()
            depth = depths[user % len(depths)]
            ours = client.recommend(history, timestamps=times, depth=depth, profile="mobile")
            options = json.dumps({"depth": depth, "timestamps": times})
            found = page.run(f"bundle.recommend({json.dumps(history)}, {options})")
            assert found["depth"] == ours.depth
            assert [item["id"] for item in found["items"]] == [item.id for item in ours.items]
            scores = [item["score"] for item in found["items"]]
            assert scores == pytest.approx([item.score for item in ours.items], abs=1e-5)
    assert page.complaints == []


def test_the_page_shows_what_it_recommends_and_says_what_is_wrong(site: tuple[Path, str], page: Page) -> None:
    _, address = site
    opened(page, address, "fp32")
    page.run("document.forms[0].requestSubmit()")
    page.until("document.querySelectorAll('ol li').length === 10")
    assert page.run("document.querySelector('#told').textContent").startswith("depth 8, ")
    page.open(f"{address}/?bundle=nowhere")
    page.until("document.querySelector('#told').textContent.startsWith('nowhere/manifest.json: 404')")
