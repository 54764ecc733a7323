"""Who may call: the access file, limits of work, keys that are added, and files that change while a server runs."""

import asyncio
import json
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fathom.cli import app
from fathom.client import AsyncClient, Client
from fathom.errors import ConfigError, ConnectError, InvalidRequestError, UnauthenticatedError
from fathom.serving.access.bucket import Bucket, take_all
from fathom.serving.access.caller import Caller
from fathom.serving.access.control import AccessControl
from fathom.serving.access.keys import new_key
from fathom.serving.access.principal import Principal, Tenant, scope_of
from fathom.serving.access.privacy import check_private_size
from fathom.serving.access.schema import read_access
from fathom.serving.audit import AuditLog
from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo
from fathom.serving.exposure import check_exposure, is_loopback
from fathom.serving.server import Server

HISTORY = ["item-1", "item-2"]
HASH = "a" * 64


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# The access file.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a mapping"),
        ("keys: []", "nobody may call; add a key with `fathom key NAME --add"),
        (f"keys:\n  - {{name: web, sha256: {HASH}, roles: [root]}}", ":1: keys.0.roles.0: Input should be"),
        (f"keys:\n  - {{name: web, sha256: {HASH}, roles: []}}", "keys.0.roles"),
        ("keys:\n  - {name: web, sha256: secret, roles: [write]}", "keys.0.sha256: String should match pattern"),
        (f"keys:\n  - {{name: web, sha256: {HASH}, roles: [write], tenant: shop}}", "'shop' is not among tenants"),
        (
            f"keys:\n  - {{name: a, sha256: {HASH}, roles: [write]}}\n  - {{name: b, sha256: {HASH}, roles: [write]}}",
            "hash",
        ),
        (f"keys:\n  - {{name: a, sha256: {HASH}, roles: [write], burst: 3}}", "burst needs a rate"),
        ("passwords: {ann: x}", ":1: passwords: unknown key"),
        ("jwt:\n  - {issuer: i, audience: a, jwks: k.json, algorithms: [none]}", "jwt.0.algorithms.0"),
        ("jwt:\n  - {issuer: i, audience: a, jwks: k.json, algorithms: [HS256]}", "jwt.0.algorithms.0"),
        ("jwt:\n  - {issuer: i, audience: a, jwks: 'http://id.example.org/keys'}", "fetched over https only"),
        ("jwt:\n  - {issuer: i, audience: a, jwks: k.json, tenant: x, tenant_claim: t}", "tenant or tenant_claim"),
    ],
)
def test_a_wrong_access_file_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_access(written(tmp_path / "access.yaml", text))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value).replace("secret:", "")


@pytest.mark.parametrize("jwks", ["missing.json", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'])
def test_a_set_of_keys_without_a_public_key_is_refused(tmp_path: Path, jwks: str) -> None:
    if not jwks.endswith(".json"):
        written(tmp_path / "keys.json", jwks)
    name = jwks if jwks.endswith(".json") else "keys.json"
    access = written(tmp_path / "access.yaml", f"jwt:\n  - {{issuer: i, audience: a, jwks: {name}}}")
    with pytest.raises(ConfigError, match=r"is no set of keys that can be used|holds no public key"):
        AccessControl(access).load()


def test_keys_are_added_to_a_file_that_keeps_all_else(tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    command = ["key", "web", "--roles", "recommend", "--add", str(path)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    path.write_text("# ours\ntenants: {shop: {}}\n" + path.read_text() + "revoked: [x]\n")
    more = ["--tenant", "shop", "--rate", "5", "--expires", "2100-01-31"]
    second = CliRunner().invoke(app, ["key", "jobs", "--roles", "write,admin", "--add", str(path), *more])
    assert second.exit_code == 0, second.output
    text, found = path.read_text(), read_access(path)
    assert text.startswith("# ours\n")
    assert text.endswith("revoked: [x]\n")
    assert [(key.name, key.roles, key.tenant, key.rate) for key in found.keys] == [
        ("jobs", ("write", "admin"), "shop", 5.0),
        ("web", ("recommend",), "", None),
    ]
    assert str(found.keys[0].expires) == "2100-01-31"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    access = AccessControl(path)
    access.load()
    assert [access.of_header(f"Bearer {each.stdout.splitlines()[0]}").name for each in (first, second)] == [
        "key web",
        "key jobs",
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--roles", "boss"], "roles"), (["--tenant", "nobody"], "not among tenants"), (["--expires", "soon"], "expires")],
)
def test_a_key_that_would_spoil_the_file_is_not_added(tmp_path: Path, arguments: Sequence[str], reason: str) -> None:
    path = tmp_path / "access.yaml"
    CliRunner().invoke(app, ["key", "web", "--add", str(path)])
    before = path.read_bytes()
    result = CliRunner().invoke(app, ["key", "other", "--add", str(path), *arguments])
    assert isinstance(result.exception, ConfigError)
    assert reason in str(result.exception)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_is_accepted_to_the_end_of_its_last_day(tmp_path: Path) -> None:
    key, now = new_key(), [0.0]
    line = f"keys:\n  - {{name: web, sha256: {key.sha256}, roles: [recommend], expires: 2030-01-01}}"
    access = AccessControl(written(tmp_path / "access.yaml", line), clock=lambda: now[0])
    access.load()
    for moment, accepted in ((1893542399.0, True), (1893542400.0, False)):
        now[0] = moment
        if accepted:
            assert access.of_header(f"Bearer {key.text}").name == "key web"
        else:
            with pytest.raises(UnauthenticatedError, match="not accepted"):
                access.of_header(f"Bearer {key.text}")


# Tenants and limits.


@given(st.text(), st.text(), st.sampled_from(["", "a", "b", "ab"]), st.sampled_from(["", "a", "b", "ab"]))
def test_users_of_two_tenants_never_meet(one: str, other: str, tenant: str, another: str) -> None:
    try:
        keys = Tenant(tenant).key_of(one), Tenant(another).key_of(other)
    except InvalidRequestError:
        return
    assert (keys[0] == keys[1]) == ((one, tenant) == (other, another))


def test_scopes_of_tenants_and_users_differ_and_are_equally_long() -> None:
    scopes = [scope_of(tenant, user) for tenant in ("", "a", "b") for user in (None, "a", "b") if tenant or user]
    assert len(set(scopes)) == len(scopes)
    assert {len(scope) for scope in scopes} == {16}
    assert scope_of("", None) == b""


def test_a_bucket_gives_its_rate_and_its_burst_and_takes_time_back() -> None:
    bucket = Bucket(rate=2.0, burst=4.0)
    assert take_all([bucket], 4, 0.0) == 0
    assert take_all([bucket], 1, 0.0) == 0.5
    assert take_all([bucket], 1, 0.5) == 0
    # What asks for more than it ever holds waits for it to be full, and owes the rest.
    assert take_all([bucket], 10, 1.0) == 1.5
    assert take_all([bucket], 10, 100.0) == 0
    assert take_all([bucket], 1, 100.0) == 3.5


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9)), max_size=60))
def test_nobody_gets_more_than_rate_and_burst_allow(asked: list[tuple[float, int]]) -> None:
    bucket, now_s, taken = Bucket(5.0, 10.0), 0.0, 0
    for pause_s, work in asked:
        now_s += pause_s
        taken += 0 if take_all([bucket], work, now_s) else work
    assert taken <= 10 + 5 * now_s + 1e-6


def test_of_two_limits_both_hold_and_neither_pays_for_a_refusal() -> None:
    own, shared = Bucket(1.0, 5.0), Bucket(1.0, 2.0)
    assert take_all([own, shared], 2, 0.0) == 0
    assert take_all([own, shared], 1, 0.0) == 1
    assert take_all([own], 3, 0.0) == 0


def test_a_private_answer_is_short_beside_the_catalogue() -> None:
    for items, most in ((3, 1), (100, 10), (10_000, 50)):
        check_private_size(most, items, Principal())
        with pytest.raises(Exception, match=f"at most {most} items"):
            check_private_size(most + 1, items, Principal())


# Where a server listens.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost."])
def test_what_only_this_machine_reaches_needs_no_security(host: str) -> None:
    assert is_loopback(host)
    check_exposure(ServerSettings(host=host))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"host": "0.0.0.0"}, "without --tls-cert and --access"),
        ({"host": "::", "access": "x"}, "without --tls-cert"),
        ({"host": "shop.example.org", "tls_cert": "x", "tls_key": "x"}, "without --access"),
        ({"admin_port": 0, "admin_host": "10.0.0.1"}, "without --tls-cert and --access"),
    ],
)
def test_a_port_that_others_reach_needs_tls_and_access_control(settings: dict[str, Any], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        check_exposure(ServerSettings(**settings))
    check_exposure(ServerSettings(**settings, insecure=True))
    check_exposure(ServerSettings(**{"tls_cert": "x", "tls_key": "x", "access": "x"} | settings))


@pytest.mark.parametrize("given", [{"tls_cert"}, {"tls_key"}, {"tls_client_ca"}, {"tls_cert", "tls_client_ca"}])
def test_half_of_what_tls_needs_is_refused(synthetic_bundle: Path, tmp_path: Path, given: set[str]) -> None:
    with pytest.raises(ConfigError, match=r"belong together|over TLS only"):
        Server(ServerSettings(**dict.fromkeys(given, tmp_path / "x")), synthetic_bundle)


async def test_a_certificate_and_a_key_that_do_not_belong_together_are_refused(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    (certificate, _), (_, key) = authority.issue("one"), authority.issue("two")
    async with Server(ServerSettings(port=0, tls_cert=certificate, tls_key=key), synthetic_bundle) as server:
        with pytest.raises(ConfigError, match="are no certificate and its key"):
            await server.start()


# A server that runs while its files change.


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that the server notices by itself."""
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(path: Path, **settings: Any) -> AsyncIterator[ServerInfo]:
    async with Server(ServerSettings(port=0, **settings), path) as server:
        yield await server.start()


async def test_a_key_that_is_taken_out_of_the_file_is_refused_while_the_server_runs(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    keys = {name: new_key() for name in ("one", "two")}

    def write(*names: str) -> Path:
        lines = [f"  - {{name: {name}, sha256: {keys[name].sha256}, roles: [recommend]}}" for name in names]
        (tmp_path / "new").write_text("\n".join(("keys:", *lines)))
        return (tmp_path / "new").replace(tmp_path / "access.yaml")

    async with serving(synthetic_bundle, access=write("one", "two")) as info:

        async def accepted(name: str) -> bool:
            async with AsyncClient(info.address, metadata={"authorization": f"Bearer {keys[name].text}"}) as client:
                try:
                    await client.recommend(HISTORY)
                except UnauthenticatedError:
                    return False
                return True

        assert await accepted("one")
        write("two")
        await until(lambda: negated(accepted("one")))
        # A file that is wrong changes nothing.
        (tmp_path / "access.yaml").write_text("keys: 3")
        assert await accepted("two")
        write("one")
        await until(lambda: accepted("one"))
        assert not await accepted("two")


async def test_keys_work_and_can_be_revoked_while_an_issuer_cannot_be_reached(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    key = new_key()
    access = tmp_path / "access.yaml"
    issuer = "jwt:\n  - {issuer: i, audience: a, jwks: 'http://127.0.0.1:1/keys.json'}\n"
    line = f"  - {{name: one, sha256: {key.sha256!r}, roles: [recommend]}}\n"
    other = f"  - {{name: two, sha256: {HASH!r}, roles: [recommend]}}\n"
    access.write_text(f"{issuer}keys:\n{line}{other}")
    async with (
        serving(synthetic_bundle, access=access) as info,
        AsyncClient(info.address, metadata={"authorization": f"Bearer {key.text}"}) as client,
    ):
        assert (await client.recommend(HISTORY)).items
        access.write_text(f"{issuer}keys:\n{other}")

        async def refused() -> bool:
            try:
                await client.recommend(HISTORY)
            except UnauthenticatedError:
                return True
            return False

        await until(refused)


def test_a_flood_of_refusals_leaves_what_others_have_done_in_the_audit_log(tmp_path: Path) -> None:
    class Call:
        def peer(self) -> str:
            return "ipv4:192.0.2.1:1"

    log = AuditLog(tmp_path, 200_000)
    log.start()
    log.note("DeleteUser", Caller(), Call(), grpc.StatusCode.OK)
    for _ in range(5_000):
        log.note("Recommend", None, Call(), grpc.StatusCode.UNAUTHENTICATED)
    log.close()
    (changes,), refusals = list(tmp_path.glob("audit-*")), list(tmp_path.glob("refused-*"))
    assert json.loads(changes.read_text())["method"] == "DeleteUser"
    assert 0 < sum(len(path.read_text().splitlines()) for path in refusals) < 500
    assert sum(path.stat().st_size for path in refusals) <= 50_000


async def negated(value: Awaitable[bool]) -> bool:
    return not await value


async def test_new_connections_get_the_certificate_that_is_in_the_file_now(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new", "other")
    certificate, key = old.issue("server")
    paths = {"tls_cert": certificate, "tls_key": key}

    async def trusted(authority: Authority) -> bool:
        async with AsyncClient(info.address, tls=authority.ca) as client:
            try:
                await client.recommend(HISTORY, timeout_s=5)
            except ConnectError:
                return False
        host, _, port = str(info.metrics_address).rpartition(":")
        try:
            context = ssl.create_default_context(cafile=str(authority.ca))
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        except ssl.SSLError:
            return False
        writer.close()
        return True

    async with serving(synthetic_bundle, metrics_port=0, **paths) as info:
        assert info.secure
        assert str(info).startswith(f"ready on {info.address} (TLS): ")
        assert await trusted(old)
        certificate.write_text("half of a")
        assert await trusted(old)
        for path, issued in zip((certificate, key), new.issue("server"), strict=True):
            issued.replace(path)
        await until(lambda: trusted(new))
        assert not await trusted(old)


async def test_admins_have_a_port_of_their_own(synthetic_bundle: Path) -> None:
    async with serving(synthetic_bundle, admin_port=0, history="memory") as info:
        assert info.admin_address is not None
        assert f"admins on {info.admin_address}" in str(info)

        def ask() -> None:
            with Client(info.address) as everybody, Client(str(info.admin_address)) as admin:
                assert everybody.recommend(HISTORY).items
                assert everybody.append_events("ann", []) == 0
                for refused in (everybody.reload, lambda: everybody.delete_user("ann"), admin.bundle):
                    with pytest.raises(ConnectError, match="UNIMPLEMENTED"):
                        refused()
                with pytest.raises(ConnectError, match="UNIMPLEMENTED"):
                    admin.recommend(HISTORY)
                assert admin.delete_user("ann") == 0
                assert [each.error for each in admin.reload()] == [""]

        await asyncio.to_thread(ask)


async def test_an_audit_log_that_cannot_be_written_to_ends_nothing_and_is_counted(
    synthetic_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "audit"
    async with Server(ServerSettings(port=0, history="memory", audit=folder), synthetic_bundle) as server:
        info = await server.start()
        async with AsyncClient(info.address) as client:
            await client.delete_user("ann")
            (line,) = [json.loads(text) for path in folder.glob("audit-*") for text in path.read_text().splitlines()]
            assert (line["who"], line["method"], line["status"]) == ("anybody", "DeleteUser", "OK")
            for path in folder.glob("audit-*"):
                path.unlink()
            folder.rename(tmp_path / "moved")
            folder.write_text("in the way")
            assert await client.delete_user("ann") == 0
        assert server.audit is not None
        assert server.audit.lost == 1


def test_commands_take_a_token_from_the_environment_and_servers_ignore_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.connection import Connection
    from fathom.serving.config import load_settings

    options: dict[str, Any] = {"tls": False, "ca": None, "cert": None, "key": None}
    monkeypatch.setenv("FATHOM_TOKEN", "t0ken")
    assert Connection.from_options("a:1", **options, metadata=[]).metadata == {"authorization": "Bearer t0ken"}
    own = ["Authorization=Bearer mine"]
    assert Connection.from_options("a:1", **options, metadata=own).metadata == {"authorization": "Bearer mine"}
    assert load_settings({}, environment={"FATHOM_TOKEN": "t0ken"}) == ServerSettings()


def test_a_far_away_hint_is_not_given_to_clients_that_would_wait_for_it() -> None:
    from fathom.errors import OverloadError
    from fathom.serving.guard import ending_of

    assert ending_of(OverloadError("full", retry_after_s=0.2), "Recommend") == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "full",
        (("grpc-retry-pushback-ms", "200"),),
    )
    assert ending_of(OverloadError("full", retry_after_s=900.0), "Recommend")[2] == (("grpc-retry-pushback-ms", "-1"),)
