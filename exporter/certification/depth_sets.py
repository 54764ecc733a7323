"""The sets of depths that device profiles choose from."""

from collections.abc import Sequence

from fathom.edge_profiles.profile import load_profile, profile_names
from fathom.errors import ConfigError
from fathom.runtime.bundle import Bundle


def depth_sets(bundle: Bundle, profiles: Sequence[str] = ()) -> list[tuple[int, ...]]:
    """The sets of depths that there is a choice from, with depth 0 and without, the largest first.

    ``profiles``: names, files or tiers; without any, all that come with Fathom. Raises ConfigError where none has two.
    """
    allowed = [load_profile(name).depths for name in profiles or profile_names()]
    served = [tuple(depth for depth in depths if depth in bundle.manifest.served_depths) for depths in allowed]
    served += [tuple(filter(None, depths)) for depths in served]
    sets = sorted({depths for depths in served if len(depths) > 1}, key=lambda depths: (-len(depths), depths))
    if not sets:
        raise ConfigError(f"{bundle.path}: no profile given has two of its depths; there is nothing to choose from")
    return sets
