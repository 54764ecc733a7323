"""Whether a server that is about to answer keeps to its profile: to the memory, and to the time of a request."""

import time
from collections.abc import Iterable

import numpy as np

from fathom.errors import ConfigError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.deployment import Deployment
from fathom.serving.describe import too_large
from fathom.serving.memory import peak_mb

#: Asked for to find out how long 99 of 100 take.
BUDGET_REQUESTS = 200


async def check_fit(deployments: Iterable[Deployment]) -> None:
    """Raise ConfigError for the first that exceeds its profile's memory, or its latency budget at every depth."""
    for each in deployments:
        await each.pipeline.run_largest()
        _check_memory(each, peak_mb())
        await _check_budget(each)


def _check_memory(deployment: Deployment, peak: float | None) -> None:
    """What this process has taken at most, with the largest batch that the profile allows.

    With engines on a GPU the profile speaks of that GPU's memory, and where the kernel does not tell what a process
    takes, nothing is refused.
    """
    limit_mb = deployment.profile.memory_limit_mb
    if deployment.pipeline.engine.device == "cpu" and peak is not None and peak > limit_mb:
        raise too_large(deployment.bundle.path, deployment.profile, peak)


async def _check_budget(deployment: Deployment) -> None:
    """What the shallowest depth of the profile takes for the longest history, 99 times of 100.

    What the engine's own estimate finds too slow is asked for BUDGET_REQUESTS times before it is refused, and time in
    which others had the processor does not count: a machine may be busy just now.
    """
    profile, pipeline, bundle = deployment.profile, deployment.pipeline, deployment.bundle
    ids, longest = bundle.catalogue.ids, bundle.manifest.model.max_history
    depth = min(depth for depth in pipeline.engine.depths if depth in profile.depths)
    if pipeline.p99_s(depth) * 1e3 <= profile.latency_budget_ms:
        return
    request = pb.RecommendRequest(item_ids=[ids[place % len(ids)] for place in range(longest)], depth=depth)
    query, _ = deployment.decoder.query(request, None)
    took_s = []
    for _ in range(BUDGET_REQUESTS):
        begin_s, cpu_s = time.perf_counter(), time.process_time()
        await pipeline.recommend(query)
        took_s.append(min(time.perf_counter() - begin_s, time.process_time() - cpu_s))
    p99_ms = float(np.quantile(took_s, 0.99)) * 1e3
    if p99_ms > profile.latency_budget_ms:
        raise ConfigError(
            f"{bundle.path}: 99 of 100 requests take up to {p99_ms:.1f} ms at depth {depth} on this machine, and"
            f" profile {profile.name} allows {profile.latency_budget_ms:g} ms (latency_budget_ms); choose another"
            " profile, or serve it with --force"
        )
