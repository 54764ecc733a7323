"""The transport that a server asks for."""

from typing import Literal

from fathom.serving.transport.aio import AioTransport
from fathom.serving.transport.contract import Options, Transport
from fathom.serving.transport.http2.transport import Http2Transport

TransportName = Literal["http2", "aio"]


def open_transport(wanted: TransportName, options: Options) -> Transport:
    """The one of that name."""
    return Http2Transport(options) if wanted == "http2" else AioTransport(options)
