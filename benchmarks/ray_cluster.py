"""A Ray cluster of one machine with Fathom on it: started, asked, ended."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fathom.benchmarks.ports import free_port
from fathom.errors import optional

OBJECT_STORE_BYTES = 80 * 2**20
APPLICATION, DEPLOYMENT = "fathom", "Recommender"
#: As Ray names the process of a replica.
_REPLICA = "ray::ServeReplica:"


@contextmanager
def ray_cluster(cpus: int = 2, contract: str = "fathom.ray_serve:add_recommender") -> Iterator[str]:
    """Ray Serve with a gRPC proxy on a free port, whose address this gives; nothing of it stays.

    Raises MissingExtraError where it is not installed.
    """
    # No report to Ray's makers, and no token in the home folder: only this machine reaches it.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    # On a busy machine a proxy takes longer than Ray waits for it, and Ray kills it then.
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
    ray, serve = optional("ray", "ray"), optional("ray.serve", "ray")
    # Ray's sockets are there, and their names may be no longer than the system allows.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        port = free_port()
        serve.start(
            http_options={"host": "127.0.0.1", "port": free_port()},
            grpc_options={"port": port, "grpc_servicer_functions": [contract]},
            logging_config={"log_level": "ERROR"},
        )
        yield f"127.0.0.1:{port}"
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def deploy(bundle: Path, *, autoscaling: Mapping[str, Any] | None = None, **given: Any) -> None:
    """Run the application, or change it while it runs; returns when all replicas are ready.

    ``autoscaling``: an ``autoscaling_config``, in place of a fixed number of replicas.
    """
    from ray import serve

    from fathom.ray_serve import app

    arguments = {"bundle": str(bundle), "insecure": True, **given}
    application = app(arguments)
    if autoscaling is not None:
        bound: Any = application._bound_deployment
        options = bound.options(num_replicas="auto", autoscaling_config=dict(autoscaling))
        application = options.bind(*bound.init_args, **bound.init_kwargs)
    serve.run(application, name=APPLICATION, logging_config={"log_level": "ERROR"})


def replica_processes() -> list[int]:
    """The processes of this cluster's replicas, oldest first."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if each.cmdline()[0].startswith(_REPLICA):
                found.append(each)
        except (psutil.Error, IndexError):
            continue  # it has just ended
    return [each.pid for each in sorted(found, key=lambda each: each.create_time())]


def running_replicas() -> int:
    """How many replicas Ray sends requests to."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return 0
    states = application.deployments[DEPLOYMENT].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")
