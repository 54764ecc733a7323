"""Whether a server that is about to answer stays within the memory that its profile allows."""

from collections.abc import Iterable

from fathom.serving.deployment import Deployment
from fathom.serving.describe import too_large
from fathom.serving.memory import peak_mb


def check_memory(deployments: Iterable[Deployment]) -> None:
    """Raise ConfigError where this process has taken more than that.

    By now it has run the largest batch that the profile allows. With engines on a GPU the profile speaks of that GPU's
    memory, and where the kernel does not tell what a process takes, nothing is refused.
    """
    peak = peak_mb()
    for each in deployments:
        if each.pipeline.engine.device == "cpu" and peak is not None and peak > each.profile.memory_limit_mb:
            raise too_large(each.bundle.path, each.profile, peak)
