"""What addresses stand behind the names of servers."""

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fathom.connection import SCHEMES

#: How often names are looked up again, and how soon at the earliest, after a server was lost.
LOOK_UP_S, AGAIN_S = 30.0, 1.0


class Place(NamedTuple):
    """A server to connect to, and the host name that its certificate shows; none where ``target`` has it."""

    target: str
    host: str = ""


def is_name(target: str) -> bool:
    """Whether DNS knows more of it: ``host:port`` or ``dns:///host:port``, but for an address."""
    host = _parts(target)[0]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host)
    return False


def places_of(targets: Iterable[str]) -> Mapping[str, Place]:
    """All servers behind some targets, by what to call them; raises OSError where a name cannot be looked up.

    Two names for one address are one server.
    """
    found: dict[str, Place] = {}
    for target in targets:
        if not is_name(target):
            found.setdefault(target, Place(target))
            continue
        host, port = _parts(target)
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise OSError(f"{host[:64]} is no host name") from None
        for *_, address in infos:
            ip = str(address[0])
            place = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
            found.setdefault(place, Place(place, host))
    return found


def _parts(target: str) -> tuple[str, int]:
    """Host and port; an empty host where gRPC is to understand the target by itself."""
    for scheme in ("dns:///", "dns:"):
        target = target.removeprefix(scheme)
    host, _, port = target.rpartition(":")
    if target.startswith(SCHEMES) or "/" in host or not port.isdecimal():
        return "", 0
    return host.strip("[]"), int(port)
