"""One bundle in service: opened, warmed up and tested, with everything needed to answer from it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import BundleError, ConfigError, FathomError, NotFoundError, RequestError, brief
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.interface import Engine
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.manifest import content_version
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.settings import PipelineSettings
from fathom.runtime.signature import Trust
from fathom.serving.config import ServerSettings
from fathom.serving.describe import (
    DeploymentInfo,
    bundle_message,
    drift_message,
    own_profile,
    routing_message,
    served_profiles,
)
from fathom.serving.metrics import Metrics
from fathom.serving.request_decoder import RequestDecoder
from fathom.serving.response_encoder import ResponseEncoder
from fathom.serving.rules_file import load_rules

#: Loads a bundle's engine with so many threads.
MakeEngine = Callable[[Bundle, int], Engine]
#: The engines for incremental inference take about as much.
LEAST_REUSE_MB = 16
#: An engine that has failed gets so long for its test.
TEST_S = 10.0


class Deployment:
    """A bundle under the name it is asked for, and its catalogue; ``engine`` belongs to it and is closed with it."""

    def __init__(
        self, name: str, bundle: Bundle, catalogue: LiveCatalogue, engine: Engine, settings: ServerSettings
    ) -> None:
        self.name = name
        self.bundle = bundle
        self.catalogue = catalogue
        self.profile = own_profile(settings.profile, bundle, force=settings.force)
        #: As ``version``, but it stays when the bundle is certified.
        self.content = content_version(bundle.manifest)
        self._engine = engine
        limits = PipelineSettings.for_profile(
            self.profile,
            max_queue=settings.max_queue,
            threads=settings.threads or self.profile.threads,
            policy=settings.policy,
            feedback_share=settings.feedback_share,
            feedback_alpha=settings.feedback_alpha,
            recertify=settings.recertify,
            reuse_mb=reuse_mb(settings, self.profile),
        )
        self.pipeline = Pipeline(bundle, self._engine, settings=limits, catalogue=catalogue)
        self.pipeline.chooser.require(self.profile)
        profiles = served_profiles(bundle)
        self._rules = None if settings.rules is None else Path(settings.rules)
        self.decoder = RequestDecoder(bundle, catalogue, profiles, self.profile)
        self.encoder = ResponseEncoder(bundle, catalogue)
        self._message = bundle_message(bundle, engine.name, profiles, self.profile)

    @classmethod
    async def open(
        cls,
        name: str,
        path: Path,
        settings: ServerSettings,
        metrics: Metrics,
        make_engine: MakeEngine,
        trust: Trust | None = None,
    ) -> Self:
        """Open a bundle, warm it up in every shape and test it, beside whatever the event loop serves meanwhile.

        Raises BundleError or ConfigError, and then leaves nothing open.
        """

        def load() -> tuple[Bundle, LiveCatalogue, Engine]:
            bundle = Bundle.open(path, trust=trust)
            catalogue = LiveCatalogue(bundle, encoder=bundle.text_encoder)
            profile = own_profile(settings.profile, bundle, force=settings.force)
            growing = replace(bundle, vectors=catalogue.vectors)
            return bundle, catalogue, make_engine(growing, settings.threads or profile.threads)

        try:
            bundle, catalogue, engine = await asyncio.to_thread(load)
            try:
                deployment = cls(name, bundle, catalogue, engine, settings)
            except BaseException:
                engine.close()
                raise
            try:
                await deployment.pipeline.start()
                await deployment._test()
            except BaseException:
                deployment.close()
                raise
            deployment.pipeline.observe(partial(metrics.ran, name))
            return deployment
        except FathomError:
            raise
        except Exception as error:  # an engine that is not what it says can break anything
            raise BundleError(f"{path}: it cannot be served: {brief(repr(error), 120)}") from error

    def read_rules(self) -> None:
        """Follow the server's rules as their file is now, once the catalogue is loaded, whose categories they name.

        Raises ConfigError where it is wrong, and changes nothing.
        """
        try:
            self.decoder.use_rules(load_rules(self._rules, self.name))
        except NotFoundError as error:
            raise ConfigError(f"{self._rules}: default of bundle {self.name}: {error}") from None

    @property
    def version(self) -> str:
        """12 digits over the bundle's contents."""
        return self.bundle.manifest.version

    def info(self) -> DeploymentInfo:
        """For the line that a server prints when it is ready."""
        return DeploymentInfo(
            name=self.name,
            version=self.version,
            items=self.bundle.manifest.items,
            depths=self.pipeline.depths,
            profile=self.profile.name,
            engine=self._engine.name,
            policy=self.pipeline.chooser.policy(self.profile).words(self.profile),
        )

    def describe(self) -> pb.GetBundleResponse:
        """GetBundle's answer, as it is now."""
        self._message.items = self.catalogue.offered
        self._message.routing.CopyFrom(routing_message(self.pipeline.chooser, self.profile, self.bundle.certificate))
        self._message.drift.CopyFrom(drift_message(self.pipeline.drift))
        return self._message

    async def retire(self) -> None:
        """Finish the requests in progress, then close; no new request may use it."""
        await self.pipeline.drain()
        self.close()

    def close(self) -> None:
        """Stop at once, and give everything back."""
        self.pipeline.close()

    async def has_engine(self) -> bool:
        """Whether its engine answers; after several failures in a row it is tested, so none is given up."""
        if self.pipeline.failing:
            with suppress(FathomError, TimeoutError):
                async with asyncio.timeout(TEST_S):
                    await self._test()
        return not self.pipeline.failing

    async def _test(self) -> None:
        """Each depth answers the shortest and the longest history, from a client's message to the one it gets."""
        ids, longest = self.bundle.catalogue.ids, self.bundle.manifest.model.max_history
        counting = self.bundle.manifest.counting
        weights = {} if counting is None else counting.weights
        for depth in self.pipeline.depths:
            largest = 1.01 + weights.get(depth, 0.0)  # a cosine, and its part of counting; or that alone
            for length in (1, longest):
                request = pb.RecommendRequest(
                    item_ids=[ids[place % len(ids)] for place in range(length)],
                    k=min(10, len(ids)),
                    depth=depth,
                    include_titles=True,
                    filter=pb.Filter(include_seen=True),
                    rules=pb.Rules(),
                )
                try:
                    query, unknown = self.decoder.query(request, None)
                    answer = await self.pipeline.recommend(query)
                except RequestError as error:
                    raise BundleError(f"{self.bundle.path}: it fails its self-test: {error}") from None
                items = pb.RecommendResponse.FromString(self.encoder.response(request, answer, unknown)).items
                if len(items) != request.k or not all(abs(item.score) < largest for item in items):
                    raise BundleError(f"{self.bundle.path}: it fails its self-test: depth {depth} gives bad scores")


def reuse_mb(settings: ServerSettings, profile: DeviceProfile) -> float:
    """As told, or a small part of the memory that the profile has; none where the engines for it would take more."""
    if settings.reuse_mb is not None:
        return settings.reuse_mb
    part = min(64.0, profile.memory_limit_mb / 16)
    return part if part >= LEAST_REUSE_MB else 0.0
