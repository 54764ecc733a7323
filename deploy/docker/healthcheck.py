"""Ends with 0 while the server of this container answers /healthz with 200, and else with 1."""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

SECONDS = 3


def state(connection: HTTPConnection) -> tuple[int, str]:
    """The status and the word that /healthz answers; raises OSError or HTTPException where nothing does."""
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        return response.status, response.read(100).decode("latin-1").strip()
    finally:
        connection.close()


def main() -> int:
    """Ask over HTTP, then over HTTPS: whether the server has a certificate may be said in its settings file only."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(given := os.environ["FATHOM_HOST"], given)
    port = int(os.environ["FATHOM_METRICS_PORT"])
    # The certificate names the service, not this address, and nothing secret is sent.
    context = ssl._create_unverified_context()
    said = "nothing answers"
    for connection in (
        HTTPConnection(host, port, timeout=SECONDS),
        HTTPSConnection(host, port, timeout=SECONDS, context=context),
    ):
        try:
            status, said = state(connection)
        except (OSError, HTTPException):
            continue
        if status in (200, 503):
            break
    else:
        status = 0
    print(said)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
