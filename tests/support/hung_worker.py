"""A worker of a server that says that it is ready, and then hangs."""

import time
from multiprocessing.connection import Connection
from pathlib import Path

from fathom.serving.config import ServerSettings
from fathom.serving.describe import ServerInfo


def run(settings: ServerSettings, bundle_path: Path, pipe: Connection) -> None:  # noqa: ARG001
    """See ``RunWorker``."""
    pipe.send(ServerInfo(address="", metrics_address=None, bundles=(), started_s=0.0))
    time.sleep(3600)
