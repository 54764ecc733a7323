"""Key sets of issuers, from a real HTTP server: when they are fetched, and what a flood of unknown keys does."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fathom.errors import UnauthenticatedError
from fathom.serving.access import tokens
from fathom.serving.access.control import AccessControl
from fathom.serving.access.tokens import FETCH_EVERY_S, FETCH_SOON_S

KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("one", "two")}


class Issuers:
    """Serves key sets by name, and counts how often each was fetched."""

    def __init__(self) -> None:
        self.kids: dict[str, list[str]] = {"a": ["one"], "b": ["one"]}
        self.fetched: Counter[str] = Counter()
        issuers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                issuers.fetched[name] += 1
                body = json.dumps({"keys": [public(kid) for kid in issuers.kids[name]]}).encode()
                self.send_response(200 if issuers.kids[name] else 503)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def access_file(self, path: Path) -> Path:
        url = f"http://127.0.0.1:{self.server.server_port}"
        part = {"audience": "us", "algorithms": ["ES256"], "roles": ["recommend"]}
        path.write_text(json.dumps({"jwt": [{"issuer": name, "jwks": f"{url}/{name}", **part} for name in self.kids]}))
        return path


class Clock:
    now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


def public(kid: str) -> dict[str, Any]:
    return {**jwt.algorithms.ECAlgorithm.to_jwk(KEYS[kid].public_key(), as_dict=True), "kid": kid}


def header(kid: str, key: str = "one", issuer: str = "a") -> str:
    claims = {"iss": issuer, "aud": "us", "sub": "ann", "exp": time.time() + 600}
    return f"Bearer {jwt.encode(claims, KEYS[key], 'ES256', headers={'kid': kid})}"


@pytest.fixture
def issuers() -> Iterator[Issuers]:
    found = Issuers()
    thread = Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tokens, "monotonic", clock)
    return clock


@pytest.fixture
def control(issuers: Issuers, tmp_path: Path) -> AccessControl:
    found = AccessControl(issuers.access_file(tmp_path / "access.yaml"))
    found.load()
    return found


def flood(control: AccessControl, clock: Clock, seconds: int) -> None:
    """Five unknown keys of issuer a in every second, at each of which the server looks whether it is time."""
    for second in range(seconds):
        for number in range(5):
            with pytest.raises(UnauthenticatedError, match="signed by a key that is not known"):
                control.of_header(header(f"unknown {second} {number}"))
        control.refresh_key_sets()
        clock.now_s += 1


def test_a_flood_of_unknown_keys_fetches_the_set_of_its_issuer_once_in_a_while(
    control: AccessControl, issuers: Issuers, clock: Clock
) -> None:
    seconds = 120
    flood(control, clock, seconds)
    assert 1 < issuers.fetched["a"] <= 1 + seconds / FETCH_SOON_S
    assert issuers.fetched["b"] == 1
    assert control.of_header(header("one", issuer="b")).name


def test_a_key_that_the_issuer_has_added_is_known_soon_and_one_taken_out_in_time(
    control: AccessControl, issuers: Issuers, clock: Clock
) -> None:
    issuers.kids["a"] = ["two"]
    with pytest.raises(UnauthenticatedError):
        control.of_header(header("two", "two"))
    clock.now_s += FETCH_SOON_S + 1
    assert control.refresh_key_sets()
    assert control.of_header(header("two", "two")).name
    assert issuers.fetched == {"a": 2, "b": 1}
    issuers.kids["b"] = ["two"]
    clock.now_s += FETCH_EVERY_S + 1
    assert control.refresh_key_sets()
    with pytest.raises(UnauthenticatedError):
        control.of_header(header("one", issuer="b"))


def test_a_set_that_cannot_be_fetched_goes_on_being_used_and_is_tried_again_soon(
    control: AccessControl, issuers: Issuers, clock: Clock
) -> None:
    kept, issuers.kids["a"] = issuers.kids["a"], []
    clock.now_s += FETCH_EVERY_S + 1
    assert not control.refresh_key_sets()
    assert control.of_header(header("one")).name
    assert not control.refresh_key_sets()
    assert issuers.fetched["a"] == 2
    issuers.kids["a"] = kept
    clock.now_s += FETCH_SOON_S + 1
    assert not control.refresh_key_sets()
    assert issuers.fetched["a"] == 3
