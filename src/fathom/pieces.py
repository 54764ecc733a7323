"""Where pieces of work run: here, in processes of this machine, or on the machines of a Ray cluster."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context, parent_process
from typing import Any, Protocol, TypeVar

from fathom.errors import UnavailableError, optional

Shared = TypeVar("Shared")
Piece = TypeVar("Piece")
Result = TypeVar("Result")

#: Where Ray starts a cluster of this machine.
LOCAL = "local"
#: Ray waits half a minute for what it has started, which on a busy machine may be too short.
START_ATTEMPTS = 3


class PieceRunner(Protocol):
    """Computes function(shared, piece) for every piece, and yields each with its result when it is there."""

    def __call__(
        self, function: Callable[[Shared, Piece], Result], shared: Shared, pieces: Sequence[Piece]
    ) -> Iterator[tuple[Piece, Result]]: ...


def one_after_the_other(
    function: Callable[[Shared, Piece], Result], shared: Shared, pieces: Sequence[Piece]
) -> Iterator[tuple[Piece, Result]]:
    """The PieceRunner of this process, in the order of the pieces."""
    for piece in pieces:
        yield piece, function(shared, piece)


def over_processes(workers: int) -> PieceRunner:
    """A PieceRunner of so many processes of this machine; with one, this process.

    Raises UnavailableError where one of them dies.
    """
    if workers == 1:
        return one_after_the_other

    def run(
        function: Callable[[Shared, Piece], Result], shared: Shared, pieces: Sequence[Piece]
    ) -> Iterator[tuple[Piece, Result]]:
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_remember, initargs=(function, shared)) as pool:
            waiting: dict[Future[Result], Piece] = {pool.submit(_compute, piece): piece for piece in pieces}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield waiting.pop(future), future.result()
            except BrokenProcessPool:
                raise UnavailableError(
                    "a process died, perhaps for want of memory; run it again, with fewer --workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)

    return run


def over_ray(address: str = LOCAL) -> PieceRunner:
    """A PieceRunner of the Ray cluster at this address, or of one as large as this machine for as long as it takes.

    "local" starts that one; "auto" is the cluster that this machine belongs to. Its machines need Fathom with the same
    extras. Raises MissingExtraError without ray, UnavailableError where there is no such cluster, none can be started,
    or this process is in one.
    """

    def run(
        function: Callable[[Shared, Piece], Result], shared: Shared, pieces: Sequence[Piece]
    ) -> Iterator[tuple[Piece, Result]]:
        ray = optional("ray", "ray")
        with _connected(ray, address):
            task = ray.remote(num_cpus=1)(_applied)
            there = ray.put(shared)
            waiting = {task.remote(function, there, piece): piece for piece in pieces}
            while waiting:
                for done in ray.wait(list(waiting))[0]:
                    yield waiting.pop(done), ray.get(done)

    return run


def _connected(ray: Any, address: str, attempts: int = START_ATTEMPTS) -> AbstractContextManager[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        raise UnavailableError("this process is in a Ray cluster already; leave it with ray.shutdown()")
    try:
        # Without its dashboard, ten processes, a cluster of this machine is there sooner.
        return ray.init(  # type: ignore[no-any-return]
            address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    except Exception as error:  # where its start takes too long, Ray raises a plain one, and what it started stays
        ray.shutdown()
        if address == LOCAL and attempts > 1:
            return _connected(ray, address, attempts - 1)
        why = str(error).partition("\n")[0]
        raise UnavailableError(f"cannot use the Ray cluster at {address}: {why}") from error


def _applied(function: Callable[[Shared, Piece], Result], shared: Shared, piece: Piece) -> Result:
    return function(shared, piece)


_work: tuple[Callable[[Any, Any], Any], Any] | None = None


def _remember(function: Callable[[Any, Any], Any], shared: object) -> None:
    global _work
    _work = (function, shared)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has them: they end with it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers wait for work forever when the process that had them is killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _compute(piece: object) -> Any:
    assert _work is not None
    function, shared = _work
    return function(shared, piece)
