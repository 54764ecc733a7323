"""The transport that a server asks for."""

import logging
from typing import Literal

import grpc

from fathom.errors import ConfigError
from fathom.serving.transport.aio import AioTransport
from fathom.serving.transport.contract import Options, Transport

TransportName = Literal["auto", "core", "aio"]

#: Versions of grpcio whose core the tests have met; it is not a public interface.
TESTED = ("1.85.",)

log = logging.getLogger("fathom.serving")


def open_transport(wanted: TransportName, options: Options) -> Transport:
    """``auto``: gRPC's core in the versions of grpcio that it was tested with, else grpc.aio.

    Raises ConfigError where ``core`` is wanted and is not as expected.
    """
    if wanted == "auto" and not grpc.__version__.startswith(TESTED):
        log.warning("the core of grpcio %s has not been tested; serving through grpc.aio", grpc.__version__)
        wanted = "aio"
    if wanted == "aio":
        return AioTransport(options)
    try:
        from fathom.serving.transport.core import CoreTransport

        return CoreTransport(options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"this grpcio has another core ({error}); serve with --transport aio") from None
