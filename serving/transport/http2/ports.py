"""Sockets to listen on, and addresses of who connects."""

import socket
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

#: How often another port is tried where one that is free for IPv4 is none for IPv6.
TRIES = 8


def bound(address: str, *, shares_port: bool) -> list[socket.socket]:
    """A socket for each address that ``host:port`` means; port 0: a free one, the same for all.

    ``shares_port``: with other processes. Raises RuntimeError where that cannot be.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    tries = 1 if int(port) else TRIES
    while True:
        tries -= 1
        try:
            return _bound(host, int(port), shares_port=shares_port)
        except OSError as error:
            if not tries:
                raise RuntimeError(f"cannot listen on {address}: {error}") from None


def _addresses(host: str, port: int) -> set[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {(family, place) for family, *_, place in found if family in (socket.AF_INET, socket.AF_INET6)}


def _bound(host: str, port: int, *, shares_port: bool) -> list[socket.socket]:
    found: list[socket.socket] = []
    with ExitStack() as opened:
        for family, place in sorted(_addresses(host, port)):
            each = opened.enter_context(socket.socket(family))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares_port:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # :: alone means IPv4, too.
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            each.bind((place[0], port, *place[2:]))
            port = each.getsockname()[1]
            found.append(each)
        opened.pop_all()
    if not found:
        raise OSError("the host has no address")
    return found


def peer_of(name: Any) -> str:
    """An address as gRPC writes it."""
    host, port = name[0], name[1]
    if ":" not in host:
        return f"ipv4:{host}:{port}"
    if host.startswith("::ffff:") and "." in host:
        return f"ipv4:{host.removeprefix('::ffff:')}:{port}"
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"
