"""A signature says who made a bundle: a server that is given keys serves nothing else."""

import json
import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fathom.cli import app
from fathom.client import AsyncClient
from fathom.edge_profiles.profile import load_profile
from fathom.errors import BundleError, BundleSignatureError, ConfigError, OutputError
from fathom.exporter.bundle.sign import make_keys, sign_bundle
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.formats.ort import convert_to_ort
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME
from fathom.runtime.manifest_file import read_manifest
from fathom.runtime.signature import Trust
from fathom.serving.config import ServerSettings, load_settings
from fathom.serving.server import Server
from fathom.tools.device_check import check_device


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs of keys ``ours`` and ``foreign``: NAME.pem and NAME.pub."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "foreign"):
        make_keys(folder / f"{name}.pem", folder / f"{name}.pub")
    return folder


@pytest.fixture
def signed(synthetic_bundle: Path, keys: Path, tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(synthetic_bundle, tmp_path / "bundle"))
    sign_bundle(bundle, keys / "ours.pem")
    return bundle


def trust(keys: Path, *names: str) -> Trust:
    found = Trust.load([keys / f"{name}.pub" for name in names])
    assert found is not None
    return found


def test_a_signed_bundle_is_the_same_bundle_and_opens_with_its_key_or_none(
    signed: Path, synthetic_bundle: Path, keys: Path
) -> None:
    assert (signed / MANIFEST_NAME).read_bytes() == (synthetic_bundle / MANIFEST_NAME).read_bytes()
    for given in (None, trust(keys, "ours"), trust(keys, "foreign", "ours")):
        assert Bundle.open(signed, trust=given).manifest == read_manifest(synthetic_bundle)
    before = (signed / SIGNATURE_NAME).read_bytes()
    sign_bundle(signed, keys / "foreign.pem")
    assert (signed / SIGNATURE_NAME).read_bytes() != before
    Bundle.open(signed, trust=trust(keys, "foreign"))


def foreign(bundle: Path, keys: Path, reseal: Callable[[Path], None]) -> None:  # noqa: ARG001
    sign_bundle(bundle, keys / "foreign.pem")


def unsigned(bundle: Path, keys: Path, reseal: Callable[[Path], None]) -> None:  # noqa: ARG001
    (bundle / SIGNATURE_NAME).unlink()


def edited(bundle: Path, keys: Path, reseal: Callable[[Path], None]) -> None:  # noqa: ARG001
    """As a forger would who recomputes everything but the signature."""
    file = bundle / "items/catalogue.json"
    file.write_text(file.read_text().replace("Title 1", "Title X"))
    reseal(bundle)


def spaced(bundle: Path, keys: Path, reseal: Callable[[Path], None]) -> None:  # noqa: ARG001
    file = bundle / MANIFEST_NAME
    file.write_bytes(file.read_bytes() + b" ")


def emptied(bundle: Path, keys: Path, reseal: Callable[[Path], None]) -> None:  # noqa: ARG001
    (bundle / SIGNATURE_NAME).write_bytes(b"")


def linked(bundle: Path, keys: Path, reseal: Callable[[Path], None]) -> None:  # noqa: ARG001
    (bundle / SIGNATURE_NAME).rename(bundle.parent / "elsewhere")
    (bundle / SIGNATURE_NAME).symlink_to(bundle.parent / "elsewhere")


@pytest.mark.parametrize("spoil", [foreign, unsigned, edited, spaced, emptied, linked])
def test_what_no_trusted_key_has_signed_is_refused_in_one_line(
    signed: Path, keys: Path, reseal: Callable[[Path], None], spoil: Callable[..., None]
) -> None:
    spoil(signed, keys, reseal)
    found = CliRunner().invoke(app, ["bundle", "verify", str(signed), "--trust", str(keys / "ours.pub"), "--json"])
    assert found.exit_code == 2
    (check,) = json.loads(found.stdout)
    assert check["name"] == MANIFEST_NAME
    assert len(check["detail"]) < 300
    assert any(word in check["detail"] for word in ("not signed", "no trusted key", "a link"))


async def test_start_and_reload_refuse_what_is_not_signed_and_the_signed_one_serves_on(
    signed: Path, synthetic_bundle: Path, make_bundle: Callable[..., Path], keys: Path, tmp_path: Path
) -> None:
    settings = ServerSettings(port=0, trust=(keys / "ours.pub",))
    async with Server(settings, synthetic_bundle) as server:
        with pytest.raises(BundleSignatureError, match="not signed"):
            await server.start()
    home = tmp_path / "repository" / "shop"
    shutil.copytree(signed, home / "1")
    async with Server(settings, tmp_path / "repository") as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            shutil.copytree(make_bundle(strategy="nested"), home / "2")
            (reloaded,) = await client.reload()
            assert "not signed" in reloaded.error
            assert (await client.recommend(["item-1"])).bundle_version == reloaded.previous
            sign_bundle(home / "2", keys / "ours.pem")
            (reloaded,) = await client.reload()
            assert reloaded.error == ""
            assert reloaded.version != reloaded.previous


def test_a_derived_bundle_has_no_signature_and_says_so(
    signed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        slice_bundle(signed, load_profile("mobile"), tmp_path / "small")
    assert "its signature does not hold for the new bundle" in caplog.text
    assert not (tmp_path / "small" / SIGNATURE_NAME).exists()


def test_keys_are_private_are_never_overwritten_and_are_those_of_openssl(signed: Path, keys: Path) -> None:
    assert stat.S_IMODE((keys / "ours.pem").stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="not a key"):
        make_keys(keys / "ours.pem", keys / "new.pub")
    assert not (keys / "new.pub").exists()
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    checked = ["-verify", "-pubin", "-inkey", keys / "ours.pub", "-rawin", "-in", signed / MANIFEST_NAME]
    command = [openssl, "pkeyutl", *checked, "-sigfile", signed / SIGNATURE_NAME]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_one_line(signed: Path, keys: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    for wrong in (file, keys / "ours.pem", tmp_path):
        with pytest.raises(ConfigError, match=r"^[^\n]+$"):
            Trust.load([wrong])
    for wrong in (file, keys / "ours.pub", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"^[^\n]+$"):
            sign_bundle(signed, wrong)


def test_a_key_is_a_regular_file_or_a_link_to_one_and_nothing_else_is_waited_for(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    for wrong in ("pipe", "zero", "circle", "large"):
        for use in (lambda file: Trust.load([file]), lambda file: sign_bundle(signed, file)):
            with pytest.raises(ConfigError, match=r"^[^\n]{1,299}$"):
                use(tmp_path / wrong)
    (tmp_path / "link").symlink_to(keys / "ours.pem")
    sign_bundle(signed, tmp_path / "link")


def test_links_that_run_in_a_circle_are_one_line(signed: Path, keys: Path, tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    cloud = load_profile("cloud-cpu")
    for work in (
        lambda: sign_bundle(circle, keys / "ours.pem"),
        lambda: slice_bundle(circle, cloud, tmp_path / "out"),
        lambda: slice_bundle(signed, cloud, circle / "out"),
        lambda: convert_to_ort(circle, tmp_path / "out"),
        lambda: check_device(circle, cloud, "cloud-cpu"),
    ):
        with pytest.raises((BundleError, OutputError), match=r"^[^\n]{1,299}$"):
            work()


def test_the_setting_takes_one_file_or_several(tmp_path: Path) -> None:
    one, two = tmp_path / "a.pub", tmp_path / "b.pub"
    assert load_settings(environment={"FATHOM_TRUST": str(one)}).trust == (one,)
    assert load_settings({"trust": (one, two)}, environment={}).trust == (one, two)
    assert load_settings(environment={}).trust == ()
