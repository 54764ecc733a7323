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


class Names:
    """The servers behind some targets, as they were when each was last looked up."""

    def __init__(self, targets: Iterable[str]) -> None:
        self._places: dict[str, Mapping[str, Place]] = {target: {} for target in targets}
        #: Why there are none, where there are none.
        self.why = "no answer yet"

    def look_up(self) -> Mapping[str, Place]:
        """All of them, by what to call them; two names for one address are one server. May take seconds.

        A name that cannot be looked up stands for what it stood for before.
        """
        for target in self._places:
            try:
                self._places[target] = places_of(target)
            except OSError as error:
                self.why = error.strerror or str(error)
        found: dict[str, Place] = {}
        for places in self._places.values():
            found = {**places, **found}
        return found


def places_of(target: str) -> Mapping[str, Place]:
    """The servers behind one target; raises OSError where it cannot be looked up."""
    if not is_name(target):
        return {target: Place(target)}
    host, port = _parts(target)
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(f"{host[:64]} is no host name") from None
    addresses = [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in (str(each[4][0]) for each in infos)]
    return {address: Place(address, host) for address in addresses}


def _parts(target: str) -> tuple[str, int]:
    """Host and port; an empty host where gRPC is to understand the target by itself."""
    for scheme in ("dns:///", "dns:"):
        target = target.removeprefix(scheme)
    host, _, port = target.rpartition(":")
    if target.startswith(SCHEMES) or "/" in host or not port.isdecimal():
        return "", 0
    return host.strip("[]"), int(port)
