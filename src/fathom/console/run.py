"""Runs the console until it is told to stop."""

import ipaddress
import socket
from collections.abc import Callable, Collection

import uvicorn

from fathom.connection import Connection
from fathom.console.app import make_app
from fathom.errors import ConfigError, brief


def listen(host: str, port: int, *, insecure: bool) -> socket.socket:
    """A socket that listens; raises ConfigError for an address of a network, unless that is wanted, or one in use."""
    if not insecure and not _is_loopback(host):
        raise ConfigError(
            f"--host {brief(host)}: the console has no login, so it listens on this machine only; "
            "--insecure opens it to a network"
        )
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not an address of this machine"
        raise ConfigError(f"{brief(host)}:{port} cannot be used: {reason}; choose another with --port") from None


def run(
    connection: Connection,
    listening: socket.socket,
    metrics_urls: Collection[str],
    *,
    names: Collection[str],
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; ``names``: hosts that it answers for; ``ready`` gets the address of the page."""
    with listening:
        host, port = listening.getsockname()[:2]
        app = make_app(connection, metrics_urls, names)
        # Without a log of requests: users' ids are nobody else's business.
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none"
        )
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
