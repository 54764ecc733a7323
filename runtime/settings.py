"""Settings of a pipeline that are not in the bundle."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.runtime.retriever import BLOCK_ITEMS
from fathom.selector.choice import PolicyName


@dataclass(frozen=True)
class PipelineSettings:
    """Everything about a pipeline that is not in the bundle, and the only place with its defaults.

    ``threads``: of numpy's products, and the number to give to ``open_engine``. ``max_queue``: waiting requests.
    ``max_batch``: requests; ``max_batch_tokens``: requests x padded length. ``patience_ms``: no request lets later
    ones pass for longer. ``calibration_ms``: time for measuring costs at the start, beyond the least that it takes.
    ``retrieval_items``: items that one search scores at a time. ``policy``: see ``DepthChooser``. ``feedback_share``:
    the share of certified requests that is run at the deepest depth too, when the engine is idle, and of requests whose
    features are compared with the training data. ``feedback_alpha``: the probability of a false alarm, ever; so for the
    certificate, for features and for certifying again. ``recertify``: whether another routing is certified after an
    alarm, from second runs. ``reuse_mb``: memory for the prefix cache, so that returning histories cost only their new
    items; 0 for none, or if the engine cannot resume.
    """

    threads: int = 1
    max_queue: int = 1024
    max_batch: int = 32
    max_batch_tokens: int = 2048
    patience_ms: float = 1000.0
    calibration_ms: float = 200.0
    retrieval_items: int = BLOCK_ITEMS
    policy: PolicyName = "auto"
    feedback_share: float = 0.01
    feedback_alpha: float = 0.01
    recertify: Literal["auto", "off"] = "off"
    reuse_mb: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threads", "max_queue", "max_batch", "max_batch_tokens", "patience_ms", "retrieval_items"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("calibration_ms", "reuse_mb"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not (0 <= self.feedback_share <= 1 and 0 < self.feedback_alpha < 1):
            raise ConfigError(
                f"feedback_share is {self.feedback_share} and feedback_alpha {self.feedback_alpha};"
                " the one lies in [0, 1], the other in (0, 1)"
            )

    @classmethod
    def for_profile(cls, profile: DeviceProfile, **changes: Any) -> Self:
        """The settings that a profile asks for, with ``changes`` on top."""
        own = {name: getattr(profile, name) for name in ("threads", "max_batch", "max_batch_tokens")}
        return cls(**(own | changes))
