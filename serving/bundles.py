"""The bundles a server serves: found in a repository, reloaded while it keeps serving."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import ConfigError, FathomError, InvalidRequestError, NotFoundError
from fathom.runtime.manifest import Manifest
from fathom.runtime.manifest_file import read_manifest
from fathom.runtime.prefix_cache import Owners
from fathom.runtime.signature import Trust
from fathom.serving.access.principal import NO_TENANT, Tenant
from fathom.serving.config import ServerSettings
from fathom.serving.deployment import Deployment, MakeEngine
from fathom.serving.limits import echo
from fathom.serving.metrics import Metrics
from fathom.serving.repository import Repository, State, state_of
from fathom.serving.status import INTERNAL_TEXT

#: By name: the folder to serve, and what is in it.
_Look = dict[str, tuple[Path, State]]

_LONGEST_LIST = 120

log = logging.getLogger("fathom.serving")


@dataclass(frozen=True)
class ReloadResult:
    """A name, the version that it is served in now and the one before, and why a newer one is not used, if so."""

    name: str
    version: str
    previous: str
    error: str = ""


class Bundles:
    """One Deployment per name of a repository; belongs to one event loop."""

    def __init__(self, path: Path, settings: ServerSettings, metrics: Metrics, make_engine: MakeEngine) -> None:
        self._repository = Repository(path)
        self._settings = settings
        self._metrics = metrics
        self._make_engine = make_engine
        self._trust: Trust | None = None
        self._serving: dict[str, Deployment] = {}
        self._default = settings.default_bundle
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        #: Users whose histories are remembered, by the digest of their ids.
        self.owners = Owners()
        #: Around the moment from which a bundle serves.
        self.taking_over: Callable[[Deployment], AbstractAsyncContextManager[None]] = _at_once
        #: Called when a bundle that was exchanged is closed.
        self.on_retired: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Deployment]:
        """What is served now, by name."""
        return iter(sorted(self._serving.values(), key=lambda each: each.name))

    async def start(self) -> None:
        """Open all; raises BundleError or ConfigError for the first that cannot be served."""
        self._trust = Trust.load(self._settings.trust)
        async with self._reloading:
            before = await asyncio.to_thread(self._look)
            for name, (path, _) in before.items():
                await self._serve(name, path)
        if self._default is None and len(before) == 1:
            # Whatever is published later, requests that name none go on getting this one.
            self._default = next(iter(before))
        if self._default is not None and self._default not in before:
            raise ConfigError(f"default bundle {self._default!r} is not among {_listed(self._serving)}")
        if self._settings.watch_s:
            self._watching = asyncio.create_task(self._watch(self._settings.watch_s, before))

    def choose(self, name: str, tenant: Tenant = NO_TENANT) -> Deployment:
        """The bundle that a request asks for; raises NotFoundError, or InvalidRequestError where it must say which.

        For a ``tenant`` there are only its own.
        """
        name = name or tenant.default_bundle or self._default_for(tenant)
        if not name:
            raise InvalidRequestError(f"the request names no bundle; served: {_listed(self.names(tenant))}")
        deployment = self._serving.get(name)
        if deployment is None or not tenant.may_use(name):
            raise NotFoundError(f"bundle {echo(name)} is not served; served: {_listed(self.names(tenant))}")
        return deployment

    def names(self, tenant: Tenant = NO_TENANT) -> list[str]:
        """The bundles that a request of a tenant may name."""
        return [name for name in sorted(self._serving) if tenant.may_use(name)]

    def _default_for(self, tenant: Tenant) -> str:
        if self._default is not None and tenant.may_use(self._default):
            return self._default
        own = self.names(tenant)
        return own[0] if tenant.bundles is not None and len(own) == 1 else ""

    async def reload(self, name: str = "", tenant: Tenant = NO_TENANT) -> list[ReloadResult]:
        """Serve the newest version of one name, or of all: opened, warm and tested first, while the old one serves.

        A version that cannot be served is refused and the old one stays. What has vanished stays too, until a restart.
        Raises NotFoundError for a name that is neither served nor in the repository, BundleError for an empty one.
        """
        async with self._reloading:
            there = await asyncio.to_thread(self._repository.find)
            found = {each: path for each, path in there.items() if tenant.may_use(each)}
            if name and name not in found:
                raise NotFoundError(f"bundle {echo(name)} is not in the repository; it has {_listed(found)}")
            return [await self._renew(each, path) for each, path in found.items() if name in ("", each)]

    def forget(self, name: str = "") -> None:
        """Drop this owner's histories from the prefix cache, or everyone's if there is no name."""
        owner = self.owners.forget(name)
        if owner is not None or not name:
            for deployment in self._serving.values():
                deployment.pipeline.forget(owner)

    async def close(self) -> None:
        """Stop at once."""
        if self._watching:
            self._watching.cancel()
        for task in self._retiring:
            task.cancel()
        for deployment in self._serving.values():
            deployment.close()

    async def _serve(self, name: str, path: Path) -> Deployment:
        """Open a bundle and let it serve; raises what keeps it from that, and then leaves nothing open."""
        new = await Deployment.open(name, path, self._settings, self._metrics, self._make_engine, self._trust)
        try:
            async with self.taking_over(new):
                new.read_rules()
                self._serving[name] = new
        except BaseException:
            new.close()
            raise
        return new

    async def _renew(self, name: str, path: Path) -> ReloadResult:
        old = self._serving.get(name)
        previous = old.version if old else ""
        try:
            manifest = await asyncio.to_thread(read_manifest, path, self._trust)
            if old and _same(manifest, old.bundle.manifest):
                old.read_rules()
                return ReloadResult(name, previous, previous)
            new = await self._serve(name, path)
        except Exception as error:
            # A backend may raise anything.
            unforeseen = None if isinstance(error, FathomError) else error
            text = INTERNAL_TEXT if unforeseen else str(error)
            serving = previous or "nothing"
            log.error("bundle %s: %s is refused, %s serves on: %s", name, path, serving, text, exc_info=unforeseen)
            return ReloadResult(name, previous, previous, text)
        log.info("bundle %s: %s serves now, in place of %s", name, new.version, previous or "nothing")
        if old:
            retiring = asyncio.create_task(self._retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        return ReloadResult(name, new.version, previous)

    async def _retire(self, old: Deployment) -> None:
        try:
            await old.retire()
        except asyncio.CancelledError:
            old.close()
            raise
        # Otherwise garbage collection would count it as still in use.
        del old
        self.on_retired()

    async def _watch(self, every_s: float, seen: _Look) -> None:
        """Reload bundles that have changed since the last poll; a refused one is tried again on its next change."""
        while True:
            await asyncio.sleep(every_s)
            try:
                now = await asyncio.to_thread(self._look)
                changed = [name for name, state in now.items() if seen.get(name) != state]
                for name in changed:
                    await self.reload(name)
                seen = seen | now
            except FathomError as error:
                log.warning("polling for new bundles failed: %s", error)
            except Exception:
                # The next poll may succeed; if polling ended, no new bundle would ever be served.
                log.exception("polling for new bundles failed")

    def _look(self) -> _Look:
        return {name: (path, state_of(path)) for name, path in self._repository.find().items()}


@asynccontextmanager
async def _at_once(deployment: Deployment) -> AsyncIterator[None]:  # noqa: ARG001
    """Nothing is to be done around it."""
    yield


def _listed(names: Iterable[str]) -> str:
    """Names for a message, which stays a line that can be read."""
    text = ", ".join(sorted(names))
    return text if len(text) <= _LONGEST_LIST else f"{text[:_LONGEST_LIST]}..."


def _same(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests say the same, but for when; the version alone does not tell it before schema 5."""
    return one.model_copy(update={"created": other.created}) == other
