"""A port is free, or somebody listens on it."""

import socket

from fathom.benchmarks.ports import accepts, accepts_within, free_port


def test_a_free_port_accepts_nothing_until_somebody_listens_on_it() -> None:
    port = free_port()
    assert not accepts(port)
    assert not accepts_within(port, 0)
    with socket.create_server(("127.0.0.1", port)):
        assert accepts_within(port, 5)
