"""The application: ``serve run fathom.ray_serve:app bundle=...``, or ``import_path`` in a config of Ray Serve."""

from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import DeploymentActorConfig, RequestRouterConfig

from fathom.errors import ConfigError
from fathom.ray_serve import notices
from fathom.ray_serve.replica import Recommender
from fathom.ray_serve.settings import replica_settings

#: Of a replica at a time; beyond that requests wait in the proxy, which Fathom knows nothing of.
MAX_ONGOING = 256
#: As long as a server drains by default.
DRAIN_S = 20.0
HEALTH_EVERY_S, HEALTH_WITHIN_S = 2.0, 10.0

_ROUTER = "fathom.ray_serve.router:AffinityRouter"


def app(args: dict[str, Any]) -> serve.Application:
    """The application of one deployment, ``Recommender``; what a config says of that deployment overrides this.

    ``args``: ``bundle`` (folder of a bundle or a repository), ``replicas`` (1), ``affinity`` (true: a user's requests
    go to one replica), ``version`` (anything; a change replaces the replicas, one by one), and settings of
    `fathom serve`. Raises ConfigError for what cannot be.
    """
    given = dict(args)
    bundle = given.pop("bundle", None)
    if not isinstance(bundle, str) or not bundle:
        raise ConfigError("bundle: give the folder of a bundle, or of bundles named NAME/NUMBER/")
    if not Path(bundle).is_absolute():
        bundle = str(Path(bundle).resolve())
    replicas, affinity = _count(given.pop("replicas", 1)), _flag(given.pop("affinity", True))
    given.pop("version", None)  # it has done its work: Ray compares the arguments
    replica_settings(given, replicas)
    application: serve.Application = _deployment(replicas, affinity).bind(bundle, given, replicas)
    return application


def _deployment(replicas: int, affinity: bool) -> Any:
    more: dict[str, Any] = {}
    if affinity:
        more["request_router_config"] = RequestRouterConfig.model_validate({"request_router_class": _ROUTER})
    decorate = serve.deployment(
        name="Recommender",
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_EVERY_S,
        health_check_timeout_s=HEALTH_WITHIN_S,
        user_config={},
        deployment_actors=[
            DeploymentActorConfig(
                name=notices.NAME, actor_class=ray.remote(notices.Notices), actor_options={"num_cpus": 0}
            )
        ],
        **more,
    )
    return decorate(Recommender)


def _count(value: object) -> int:
    text = str(value)
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise ConfigError(f"replicas: {text[:64]} is not possible: give a number from 1 to 1000")
    return int(text)


def _flag(value: object) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ConfigError(f"affinity: {text[:64]} is not possible: say true or false")
    return text == "true"
