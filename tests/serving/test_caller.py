"""Whose call it is."""

import pytest

from fathom.runtime.shares import Client
from fathom.serving.access.caller import CLIENT_KEY, client_of


class Call:
    """Of a call's context, who called."""

    def __init__(self, peer: str, *metadata: tuple[str, str]) -> None:
        self._peer, self._metadata = peer, metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:50123", "10.1.2.3"),
        ("ipv6:%5B::1%5D:50123", "::"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50123", "2001:db8:1:2::"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50123", "fe80::"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:50123", "10.1.2.3"),
        ("unix:/run/fathom.sock", "unix:/run/fathom.sock"),
        ("unix:", "unix:"),
        ("ipv4:nonsense", "ipv4:nonsense"),
        ("", ""),
    ],
)
def test_a_client_is_an_address_a_connection_and_a_name(peer: str, address: str) -> None:
    assert client_of(Call(peer)) == Client(address, peer, "")
    assert client_of(Call(peer, ("other", "x"), (CLIENT_KEY, "anna"))) == Client(address, peer, "anna")


def test_of_a_long_name_only_the_beginning_counts() -> None:
    assert client_of(Call("unix:", (CLIENT_KEY, "n" * 8_000))).name == "n" * 256
