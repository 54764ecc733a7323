"""The console over HTTP: its page, and what the page asks for as JSON."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fathom.connection import Connection
from fathom.console.gateway import Gateway
from fathom.console.guard import Guard
from fathom.console.live import LiveMetrics
from fathom.console.question import Question
from fathom.errors import (
    DeadlineError,
    FathomError,
    InvalidRequestError,
    NotFoundError,
    OverloadError,
)

PAGES = Path(__file__).parent / "pages"
#: Of a question, in bytes: a history of 10,000 items.
LARGEST_QUESTION = 1 << 20
#: The longest text that is searched for.
LONGEST_SEARCH = 200

_STATUS: dict[type[FathomError], int] = {
    InvalidRequestError: 400,
    NotFoundError: 404,
    OverloadError: 503,
    DeadlineError: 504,
}


def make_app(connection: Connection, metrics_urls: Collection[str], names: Collection[str]) -> Starlette:
    """The console of one server; ``names``: hosts under which it is asked, besides addresses and localhost."""
    routes = Routes(Gateway(connection), LiveMetrics(list(metrics_urls), connection))
    return Starlette(
        routes=[
            Route("/api/server", routes.server),
            Route("/api/bundle", routes.bundle),
            Route("/api/items", routes.items),
            Route("/api/recommend", routes.recommend, methods=["POST"]),
            Route("/api/reasons", routes.reasons, methods=["POST"]),
            Route("/api/live", routes.live),
            Mount("/", StaticFiles(directory=PAGES, html=True)),
        ],
        middleware=[Middleware(Guard, names=names)],
        exception_handlers={FathomError: _failed, HTTPException: _refused},
        lifespan=routes.opened,
        max_body_size=LARGEST_QUESTION,
    )


class Routes:
    """What each path answers."""

    def __init__(self, gateway: Gateway, metrics: LiveMetrics) -> None:
        self._gateway = gateway
        self._metrics = metrics

    @asynccontextmanager
    async def opened(self, _: Starlette) -> AsyncIterator[None]:
        """The connections to the server, for as long as the console runs."""
        async with self._gateway:
            yield

    async def server(self, _: Request) -> Response:
        """Which server this is, and whether its metrics can be shown."""
        return JSONResponse({"target": self._gateway.target, "metrics": bool(self._metrics.urls)})

    async def bundle(self, request: Request) -> Response:
        """One bundle, or the default one."""
        return JSONResponse(await self._gateway.bundle(request.query_params.get("name", "")))

    async def items(self, request: Request) -> Response:
        """Items whose titles or ids contain the words of a text."""
        index = await self._gateway.index(request.query_params.get("bundle", ""))
        found = index.search(request.query_params.get("text", "")[:LONGEST_SEARCH])
        matches = [asdict(item) for item in found]
        return JSONResponse({"items": matches, "searched": len(index), "complete": index.complete})

    async def recommend(self, request: Request) -> Response:
        """Every depth's answer to one question."""
        return JSONResponse(await self._gateway.compare(await _question(request)))

    async def reasons(self, request: Request) -> Response:
        """Why one depth shows what it shows."""
        return JSONResponse({"items": await self._gateway.reasons(await _question(request))})

    async def live(self, _: Request) -> Response:
        """The last minutes."""
        if not self._metrics.urls:
            raise NotFoundError("no metrics; start the console with --metrics-url")
        return JSONResponse({"points": [asdict(point) for point in await self._metrics.points()]})


async def _question(request: Request) -> Question:
    # Other sites can send forms and plain texts without asking the browser's leave, but no JSON.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidRequestError("a question is JSON: send it as application/json")
    return Question.read(await request.body())


async def _failed(_: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 502)
    return JSONResponse({"error": str(error)}, status_code=status)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
