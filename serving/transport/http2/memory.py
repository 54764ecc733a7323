"""How much of what clients send and fetch slowly is kept in memory."""

from typing import Self

import grpc

from fathom.serving.transport.http2.messages import MessageFault


class Held:
    """Bytes that are kept: messages that are not complete or not read, and answers that wait to be sent.

    ``most``: how many there may be; ``whole``: what these are a part of. One message may always be kept.
    """

    __slots__ = ("_most", "_whole", "size")

    def __init__(self, most: int, whole: Self | None = None) -> None:
        self._most = most
        self._whole = whole
        self.size = 0

    def add(self, size: int) -> None:
        """So many more are kept; negative: fewer."""
        self.size += size
        if self._whole is not None:
            self._whole.add(size)

    def check(self, size: int) -> None:
        """Raises MessageFault where there is no room for so many more."""
        if self.size and self.size + size > self._most:
            raise MessageFault(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"messages that are not complete and answers that wait to be sent have {self._most:,} bytes",
            )
        if self._whole is not None:
            self._whole.check(size)
