"""Bundles are exchanged while requests go on: none fails, none gets a mixture, and a bad bundle changes nothing."""

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from fake_engine import FakeEngine

from fathom.client import AsyncClient, Client, Recommendation
from fathom.errors import BundleMissingFileError, ConfigError, InvalidRequestError, NotFoundError
from fathom.files import write_json
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.engines.open import open_engine
from fathom.runtime.manifest import MANIFEST_NAME, version_of
from fathom.runtime.manifest_file import read_manifest
from fathom.serving.config import ServerSettings
from fathom.serving.repository import Repository, state_of
from fathom.serving.server import Server

HISTORY = ["item-1", "item-2", "item-3"]
MakeBundle = Callable[..., Path]


class Publisher:
    """Puts bundles into a repository as an operator would: copied beside it, then renamed."""

    def __init__(self, root: Path, name: str = "shop") -> None:
        self.root = root
        self.folder = root / name
        self.folder.mkdir(parents=True)
        self._number = 0

    def publish(self, bundle: Path) -> Path:
        self._number += 1
        path = self.folder / str(self._number)
        shutil.copytree(bundle, self.folder / "new")
        (self.folder / "new").rename(path)
        return path


@pytest.fixture
def shop(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "repository")


@pytest.fixture(scope="session")
def other_bundle(make_bundle: MakeBundle) -> Path:
    """The same catalogue as the synthetic bundle, and other answers."""
    return make_bundle(strategy="nested")


@asynccontextmanager
async def serving(path: Path, **settings: object) -> AsyncIterator[AsyncClient]:
    async with Server(ServerSettings(**{"port": 0, **settings}), path) as server:  # type: ignore[arg-type]
        info = await server.start()
        async with AsyncClient(info.address) as client:
            yield client


def test_a_repository_holds_the_highest_number_of_each_name(shop: Publisher, synthetic_bundle: Path) -> None:
    with pytest.raises(BundleMissingFileError, match=r"neither manifest\.json nor NAME/NUMBER"):
        Repository(shop.root).find()
    for _ in range(10):
        newest = shop.publish(synthetic_bundle)
    Publisher(shop.root, "empty")
    (shop.folder / "11").mkdir()
    (shop.folder / "new").mkdir()
    (shop.root / "README").touch()
    assert newest.name == "10"
    assert Repository(shop.root).find() == {"shop": newest}
    shutil.rmtree(newest)
    assert Repository(shop.root).find() == {"shop": shop.folder / "9"}
    with pytest.raises(BundleMissingFileError, match="no such folder"):
        Repository(shop.root / "elsewhere").find()


def test_the_name_of_a_single_bundle_stays(synthetic_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(synthetic_bundle, path)
    repository = Repository(path)
    assert repository.find() == {"synthetic": path}
    manifest = json.loads((path / MANIFEST_NAME).read_text()) | {"name": "renamed"}
    write_json(path / MANIFEST_NAME, manifest | {"version": version_of(manifest)})
    assert repository.find() == {"synthetic": path}


async def test_bundles_side_by_side_are_chosen_by_name(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    one = read_manifest(shop.publish(synthetic_bundle)).version
    two = read_manifest(Publisher(shop.root, "films").publish(other_bundle)).version
    async with serving(shop.root) as client:
        assert (await client.recommend(HISTORY, bundle="shop")).bundle_version == one
        assert (await client.recommend(HISTORY, bundle="films")).bundle_version == two
        info = await client.bundle("films")
        assert (info.version, info.bundles) == (two, ("films", "shop"))
        for call in (client.recommend(HISTORY), client.bundle()):
            with pytest.raises(InvalidRequestError, match="names no bundle; served: films, shop"):
                await call
        for name in ("opera", "../shop", "shop/1", "/etc", ".", "films\0", "%2e%2e"):
            with pytest.raises(NotFoundError, match="is not served; served: films, shop"):
                await client.recommend(HISTORY, bundle=name)
            with pytest.raises(NotFoundError, match="is not in the repository; it has films, shop"):
                await client.reload(name)
    async with serving(shop.root, default_bundle="films") as client:
        assert (await client.recommend(HISTORY)).bundle_version == two
        assert (await client.recommend(HISTORY, bundle="shop")).bundle_version == one
    with pytest.raises(ConfigError, match="default bundle 'opera' is not among films, shop"):
        async with serving(shop.root, default_bundle="opera"):
            pass


async def test_the_default_of_the_start_stays_whatever_is_published_or_vanishes(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    version = read_manifest(shop.publish(synthetic_bundle)).version
    async with serving(shop.root) as client:
        for name in ("aaa", "zzz"):
            Publisher(shop.root, name).publish(other_bundle)
            await client.reload()
            assert (await client.recommend(HISTORY)).bundle_version == version
            assert (await client.bundle()).version == version
        shutil.rmtree(shop.folder)
        await client.reload()
        assert (await client.recommend(HISTORY)).bundle_version == version
        assert (await client.bundle()).bundles == ("aaa", "shop", "zzz")


async def test_no_answer_fails_or_mixes_versions_while_bundles_are_exchanged(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    bundles = (synthetic_bundle, other_bundle)
    shop.publish(bundles[0])
    answers: list[Recommendation] = []
    async with serving(shop.root) as client:
        expected = {}
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                answers.append(await client.recommend(HISTORY, depth=16))

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            for number in range(8):
                version = read_manifest(shop.publish(bundles[(number + 1) % 2])).version
                (reloaded,) = await client.reload()
                assert (reloaded.bundle, reloaded.version, reloaded.error) == ("shop", version, "")
                expected[version] = (await client.recommend(HISTORY, depth=16)).items
            done.set()
    one, two = expected.values()
    assert [item.id for item in one] != [item.id for item in two]
    assert {answer.bundle_version for answer in answers} == set(expected)
    for answer in answers:
        right = expected[answer.bundle_version]
        assert [item.id for item in answer.items] == [item.id for item in right]
        # In a batch of another size sums are rounded otherwise.
        assert [item.score for item in answer.items] == pytest.approx([item.score for item in right], abs=1e-5)


def truncate(path: Path) -> None:
    file = path / "engines" / "depth-08.onnx"
    file.write_bytes(file.read_bytes()[:100])


def edit(path: Path) -> None:
    file = path / "engines" / "depth-08.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def no_engine(path: Path) -> None:
    (path / "engines" / "depth-08.onnx").write_bytes(b"no engine")


def not_a_number(path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    file = path / "engines" / "depth-12.onnx"
    model = onnx.load(str(file))
    mix = next(each for each in model.graph.initializer if each.name == "mix")
    mix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mix) * np.float32(np.nan), "mix"))
    onnx.save(model, str(file))


def no_bundle(path: Path) -> None:
    (path / MANIFEST_NAME).write_text("{}")


def pipe(path: Path) -> None:
    (path / MANIFEST_NAME).unlink()
    os.mkfifo(path / MANIFEST_NAME)


def stray(path: Path) -> None:
    (path / "engines" / "notes.txt").touch()


def no_change(path: Path) -> None:
    assert path.is_dir()


def loop(path: Path) -> None:
    (path / "items" / "vectors.npy").unlink()
    (path / "items" / "vectors.npy").symlink_to("vectors.npy")


@pytest.mark.parametrize(
    ("spoil", "sealed", "reason"),
    [
        (truncate, False, "depth-08.onnx: 100 bytes where the manifest says"),
        (edit, False, "its sha256 differs"),
        (no_engine, True, "depth-08.onnx: not an ONNX file"),
        (not_a_number, True, "fails its self-test: the engine returned NaN or infinity at depth 12"),
        (no_bundle, False, "not a manifest"),
        (pipe, False, "a named pipe where a file is needed"),
        (stray, False, "holds the file 'engines/notes.txt', which its manifest does not list"),
        (loop, False, "vectors.npy: a link"),
    ],
)
async def test_a_bundle_that_cannot_be_served_is_refused_and_the_old_one_goes_on(
    shop: Publisher,
    synthetic_bundle: Path,
    other_bundle: Path,
    reseal: Callable[[Path], None],
    spoil: Callable[[Path], None],
    sealed: bool,
    reason: str,
) -> None:
    good = read_manifest(shop.publish(synthetic_bundle)).version
    async with serving(shop.root) as client:
        before = await client.recommend(HISTORY, depth=16)
        path = shop.publish(other_bundle)
        spoil(path)
        if sealed:
            reseal(path)
        (reloaded,) = await client.reload("shop")
        assert (reloaded.version, reloaded.previous) == (good, good)
        assert reason in reloaded.error
        after = await client.recommend(HISTORY, depth=16)
        assert (after.bundle_version, after.items) == (good, before.items)
        # What the operator then does: take it back, or publish a good one.
        shutil.rmtree(shop.folder / "2")
        assert [each.error for each in await client.reload()] == [""]
        shop.publish(other_bundle)
        assert [(each.previous, each.error) for each in await client.reload()] == [(good, "")]


async def test_a_request_in_flight_finishes_on_the_bundle_that_it_began_with(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    old = read_manifest(shop.publish(synthetic_bundle)).version
    inside, go, closed = threading.Event(), threading.Event(), threading.Event()
    go.set()

    def hold(batch: int, depth: int) -> None:  # noqa: ARG001
        if not go.is_set():
            inside.set()
            go.wait(timeout=30)

    class Closing(FakeEngine):
        def close(self) -> None:
            closed.set()

    def make_engine(bundle: Bundle, threads: int) -> Engine:
        if bundle.manifest.version != old:
            return open_engine(bundle, threads=threads)
        return Closing(bundle.vectors, bundle.depths, on_run=hold)

    async with Server(ServerSettings(port=0), shop.root, make_engine=make_engine) as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            go.clear()
            begun = asyncio.create_task(client.recommend(HISTORY, timeout_s=30))
            assert await asyncio.to_thread(inside.wait, 30)
            shop.publish(other_bundle)
            (reloaded,) = await client.reload()
            assert reloaded.previous == old
            assert (await client.recommend(HISTORY)).bundle_version == reloaded.version
            assert not begun.done()
            assert not closed.is_set()
            go.set()
            assert (await begun).bundle_version == old
            assert await asyncio.to_thread(closed.wait, 30)


async def test_a_reload_goes_on_when_its_caller_has_left(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    shop.publish(synthetic_bundle)
    async with Server(ServerSettings(port=0), shop.root) as server:
        info = await server.start()
        async with grpc.aio.insecure_channel(info.address) as channel, AsyncClient(info.address) as client:
            new = read_manifest(shop.publish(other_bundle)).version
            reload = channel.unary_unary("/fathom.v1.Recommender/Reload")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reload(pb.ReloadRequest().SerializeToString(), timeout=0.02)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            async with asyncio.timeout(30):
                while (await client.recommend(HISTORY)).bundle_version != new:
                    pass


async def test_a_watched_repository_needs_no_call(shop: Publisher, synthetic_bundle: Path, other_bundle: Path) -> None:
    shop.publish(synthetic_bundle)
    async with serving(shop.root, watch_s=0.01) as client, asyncio.timeout(60):
        bad = shop.publish(other_bundle)
        truncate(bad)
        second = shop.publish(other_bundle)
        while (await client.recommend(HISTORY, bundle="shop")).bundle_version != read_manifest(second).version:
            pass
        shutil.rmtree(second)
        shutil.rmtree(bad)
        while (await client.recommend(HISTORY, bundle="shop")).bundle_version == read_manifest(other_bundle).version:
            pass
        # A bundle that is still being copied is refused until it is whole.
        Publisher(shop.root, "films").publish(other_bundle)
        while "films" not in (await client.bundle("shop")).bundles:
            pass


def nest(path: Path) -> None:
    """Publish a folder to whose bottom no path leads."""
    inner, outer = path.with_name("inner"), path.with_name("outer")
    inner.mkdir()
    for _ in range(20):
        outer.mkdir()
        inner.rename(outer / ("x" * 250))
        outer.rename(inner)
    (inner / MANIFEST_NAME).touch()
    inner.rename(path)


def test_folders_that_can_be_no_bundles_keep_no_other_from_being_found(
    shop: Publisher, synthetic_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = shop.publish(synthetic_bundle)
    for name in ("a\udcff", "a\nb", "\x1b[31m", "x" * 201, "\u202e"):
        Publisher(shop.root, name).publish(synthetic_bundle)
    for name in ("01", "\u0663", "-1", "1.5", "+2"):
        shutil.copytree(only, shop.folder / name)
    repository = Repository(shop.root)
    assert repository.find() == repository.find() == {"shop": only}
    assert len(caplog.messages) == 5
    assert all(each.isprintable() and "is skipped" in each for each in caplog.messages)


def test_what_is_exchanged_for_a_file_of_the_same_size_and_time_is_noticed(
    shop: Publisher, synthetic_bundle: Path
) -> None:
    path = shop.publish(synthetic_bundle)
    before, file = state_of(path), path / MANIFEST_NAME
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    (shop.root / "new").write_bytes(file.read_bytes())
    os.utime(shop.root / "new", ns=times)
    (shop.root / "new").replace(file)
    assert state_of(path) != before


async def test_the_watcher_passes_by_what_it_cannot_serve_and_goes_on(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop.publish(synthetic_bundle)
    async with serving(shop.root, watch_s=0.02) as client, asyncio.timeout(60):
        nest(Publisher(shop.root, "nested").folder / "1")
        for number, spoil in enumerate((pipe, stray, loop, no_change), start=2):
            path = Path(shutil.copytree(other_bundle, shop.folder / "new"))
            spoil(path)  # the last one is sound
            path.rename(shop.folder / str(number))
            while number < 5 and not any(f"/{number} is refused" in each for each in caplog.messages):
                await asyncio.sleep(0.01)
        new = read_manifest(shop.folder / "5").version
        while (await client.recommend(HISTORY)).bundle_version != new:
            await asyncio.sleep(0.02)


def test_all_workers_follow_and_the_command_says_what_was_refused(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    fathom = [sys.executable, "-m", "fathom"]
    shop.publish(synthetic_bundle)
    serve = [*fathom, "serve", str(shop.root), "--workers", "2", "--port", "0", "--json", "--log-level", "error"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        new = read_manifest(shop.publish(other_bundle)).version
        done = subprocess.run([*fathom, "reload", "--target", address], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert new in done.stdout
        with Client(address, channels=16) as client:
            while {client.recommend(HISTORY).bundle_version for _ in range(16)} != {new}:
                pass
        truncate(shop.publish(synthetic_bundle))
        done = subprocess.run([*fathom, "reload", "--target", address], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "refused" in done.stdout
        process.terminate()
        assert process.wait(60) == 0


async def test_nothing_holds_a_bundle_that_was_exchanged(
    shop: Publisher, synthetic_bundle: Path, other_bundle: Path
) -> None:
    shop.publish(synthetic_bundle)
    closed = asyncio.Event()
    async with Server(ServerSettings(port=0), shop.root) as server:
        await server.start()
        first = weakref.ref(server.bundles.choose(""))
        server.bundles.on_retired = closed.set
        shop.publish(other_bundle)
        await server.bundles.reload()
        await asyncio.wait_for(closed.wait(), 30)
        gc.collect()
        assert first() is None
