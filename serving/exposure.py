"""Who could reach a server from other machines."""

import ipaddress

from fathom.errors import ConfigError
from fathom.serving.config import ServerSettings


def check_exposure(settings: ServerSettings) -> None:
    """Raise ConfigError where others than this machine could reach a port that does not ask who they are."""
    given = {"--tls-cert": settings.tls_cert, "--access": settings.access}
    missing = " and ".join(name for name, value in given.items() if value is None)
    hosts = [settings.host, *((settings.admin_host,) if settings.admin_port is not None else ())]
    exposed = [host for host in hosts if not is_loopback(host)]
    if exposed and missing and not settings.insecure:
        raise ConfigError(
            f"{exposed[0]} can be reached from other machines: without {missing}, whoever reaches it could read and"
            " delete what is known of users; see docs/security.md, or say --insecure"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
