"""`fathom bundle inspect` says for every profile what a server does with its requests, and what was certified of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from fathom.edge_profiles.profile import load_profile, profile_names
from fathom.exporter.certification.routing_table import RoutingRow, routing_rows, shortfall, table_rows, title
from fathom.runtime.bundle_contents import read_certificate
from fathom.runtime.manifest import Manifest
from fathom.runtime.manifest_file import read_manifest
from fathom.selector.certificate import Certificate, Claim
from fathom.selector.chooser import DepthChooser
from fathom.selector.routing import Mixture

MOBILE, EDGE, CLOUD = (0, 4, 8), (0, 4, 8, 12), (0, 4, 8, 12, 16)


@pytest.fixture
def manifest(certified_bundle: Path) -> Manifest:
    return read_manifest(certified_bundle)


@pytest.fixture
def certificate(certified_bundle: Path, manifest: Manifest) -> Certificate:
    found = read_certificate(certified_bundle, manifest)
    assert found is not None
    held = Claim(
        MOBILE, "mixture", 0.05, 1000, Mixture("mixture", MOBILE, (0.0, 1.0, 0.0)), 1.001, 0.4, 0.987, needed=2345
    )
    failed = Claim(EDGE, "mixture", 0.05, 1000)
    return replace(found, claims=(*found.claims, held, failed))


def test_every_profile_is_in_one_row_and_those_with_the_same_depths_share_it(
    manifest: Manifest, certificate: Certificate
) -> None:
    rows = routing_rows(manifest, certificate)
    assert sorted(name for row in rows for name in row.profiles) == sorted(profile_names())
    assert [{load_profile(name).tier for name in row.profiles} for row in rows] == [{"mobile"}, {"edge"}, {"cloud"}]


def test_a_row_has_what_its_claim_says_and_what_more_would_take(manifest: Manifest, certificate: Certificate) -> None:
    rows = routing_rows(manifest, certificate)
    assert table_rows(rows) == [
        ["profile", "depths", "routing", "kept", "agreement", "saved", "users", "more users"],
        ["mobile", "0 4 8", "100 % depth 4", "100.1%", "98.7%", "40.0%", "1,000", "about 2,345"],
        ["edge", "0 4 8 12", "not certified: depth 12", "", "", "", "1,000", "would not help"],
        [
            *("cloud", "4 8 12 16", "75 % depth 4, 25 % depth 16"),
            *("98.0%", "90.0%", "60.0%", "1,000", "would not help"),
        ],
    ]
    assert title(certificate, rows) == "Quality: at least 95 % of the deepest depth's NDCG@10, confidence 95 %"


def test_of_two_kinds_a_row_follows_quality_and_the_title_promises_no_more_than_the_rows_keep(
    manifest: Manifest, certificate: Certificate
) -> None:
    promise = replace(certificate.promises["quality"], floor=0.5, below=0.05)
    promises = {**certificate.promises, "agreement": promise}
    mobile = replace(certificate.of("quality")[-2], kind="agreement", kept=0.96, under=0.01)
    edge = replace(certificate.of("quality")[-1], kind="agreement", needed=1455)
    both = replace(certificate, promises=promises, claims=(*certificate.claims, mobile, edge))
    rows = routing_rows(manifest, both)
    assert [row.kind for row in rows] == ["quality", None, "quality"]
    assert "Agreement" not in title(both, rows)
    # Nothing is certified for edge, and agreement would take the fewest users.
    assert rows[1].cells[-1] == "about 1,455"
    alone = replace(both, claims=(mobile, edge))
    (row, *_) = routing_rows(manifest, alone)
    assert (row.kind, row.kept, row.agreement) == ("agreement", None, 0.96)
    assert title(alone, [row]).startswith("Agreement: at least 95 % of the deepest depth's top 10 on average")


def test_a_row_says_what_the_server_does(manifest: Manifest, certificate: Certificate) -> None:
    chooser = DepthChooser(certificate, manifest.served_depths, policy="auto", alpha=0.01)
    for row in routing_rows(manifest, certificate):
        for name in row.profiles:
            policy = chooser.policy(load_profile(name))
            assert policy.certified is row.certified
            assert row.routing in policy.words(load_profile(name)) or row.routing.endswith(f"depth {policy.deepest}")


def test_profiles_of_which_nothing_was_tested_say_so_and_a_bundle_without_a_certificate_what_to_run(
    manifest: Manifest, certificate: Certificate
) -> None:
    only_cloud = replace(certificate, claims=certificate.claims[:1])
    assert routing_rows(manifest, only_cloud)[0].cells[-1] == "not tested"
    rows = routing_rows(manifest, None)
    assert [row.routing for row in rows] == [f"not certified: depth {depth}" for depth in (8, 12, 16)]
    assert title(None, routing_rows(manifest, None)) == "Routing"
    told = "nothing is certified: run `fathom certify build/bundle --data DATASET`"
    assert shortfall(rows, Path("build/bundle")) == told


def test_where_nothing_is_certified_the_nearest_claim_says_how_many_users_it_would_take() -> None:
    def row(needed: int | None, *, certified: bool = False) -> RoutingRow:
        return RoutingRow(("phone-low",), MOBILE, "not certified: depth 8", certified, users=60, needed=needed)

    hopeless = "nothing is certified, and more users would not help: the next shallower depth already loses too much"
    nearest = "nothing is certified: that would take about 1,500 test users, and there are 60"
    assert shortfall([row(None), row(None)], Path()) == hopeless
    assert shortfall([row(9000), row(None), row(1500)], Path()) == nearest
    assert shortfall([row(9000), row(None, certified=True)], Path()) == ""


def test_a_small_bundle_names_the_profiles_that_it_is_for(manifest: Manifest) -> None:
    without = manifest.model_copy(update={"counting": None, "depths": {12: manifest.depths[12]}})
    (row,) = routing_rows(without, None)
    assert row.depths == (12,)
    assert row.cells[0] == "cloud, edge"
    certified = RoutingRow(("cloud-l4", "phone-high", "phone-low"), MOBILE, "100 % depth 4", certified=True)
    assert certified.cells[0] == "mobile, cloud-l4"
