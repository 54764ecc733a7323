"""From callbacks to coroutines."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def settle(found: "asyncio.Future[Result]") -> Callable[[Result | Exception], None]:
    """A callback that sets a future's result or error, or does nothing if the future is done or cancelled."""

    def done(result: Result | Exception) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    return done
