"""What Fathom is compared with: each peer, what it needs, what it speaks, how it starts, and settings to try."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

from fathom.benchmarks.server import StartedServer, started_module
from fathom.benchmarks.systems.peers import protocols
from fathom.benchmarks.systems.peers.environments import Environment, Requirements
from fathom.benchmarks.triton_server import BY_HAND, Triton, started_triton, write_repository
from fathom.errors import ConfigError
from fathom.exporter.formats.triton import MODEL

SERVERS = "fathom.benchmarks.peer_servers"


class Setting(NamedTuple):
    """Most requests in a batch, and milliseconds that the server waits for one to fill."""

    batch: int
    wait_ms: float

    @property
    def words(self) -> str:
        """For people."""
        return f"batches of {self.batch}, {self.wait_ms:g} ms"


class Start(Protocol):
    """Serves a bundle with a setting, in an environment."""

    def __call__(
        self, environment: Environment, bundle: Path, setting: Setting, /
    ) -> AbstractContextManager[StartedServer]:
        """The server, for as long as the context lasts."""


@dataclass(frozen=True)
class Adapter:
    """A peer. ``requires``: None where Fathom's own environment does. ``settings``: of which the best is measured.

    ``shares``: the name of an environment that is not its own alone.
    """

    name: str
    speaks: protocols.Protocol
    start: Start
    requires: Requirements | None = None
    settings: Sequence[Setting] = (Setting(32, 0),)
    shares: str = ""

    @property
    def environment(self) -> str:
        """The name of its environment."""
        return self.shares or slug(self.name)


def _module(name: str) -> Start:
    @contextmanager
    def start(environment: Environment, bundle: Path, setting: Setting) -> Iterator[StartedServer]:
        arguments = (str(bundle.absolute()), str(setting.batch), f"{setting.wait_ms:g}")
        module = f"{SERVERS}.{name}"
        variables = environment.variables
        with started_module(module, *arguments, python=environment.python, variables=variables) as server:
            yield server

    return start


@contextmanager
def _triton(model: str, environment: Environment, bundle: Path, setting: Setting) -> Iterator[StartedServer]:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        write_repository(bundle, repository, (model,), int(setting.wait_ms * 1e3))
        with started_triton(triton_of(environment), repository) as server:
            yield server.grpc


def triton_of(environment: Environment) -> Triton:
    """The Triton that is installed in an environment."""
    triton = Triton(environment.files / "pytriton" / "tritonserver", environment.programs)
    triton.prepare()
    return triton


def _same(package: str) -> str:
    """In the version that Fathom has here."""
    return f"{package}=={version(package)}"


def _requires(*packages: str) -> Requirements:
    return Requirements((*packages, _same("onnxruntime"), _same("pydantic"), _same("pyyaml")))


#: As Fathom has them.
_MESSAGES = (_same("numpy"), _same("protobuf"))
#: Its files hold a tritonserver with the Python backend, which was built for numpy 1.
TRITON = replace(_requires("numpy<2"), files=("nvidia-pytriton==0.7.0",))

#: What has come meanwhile is a batch; MLServer makes no batches then. mosec waits for a millisecond at least.
AT_ONCE = Setting(32, 0)
SOON, LATER = Setting(32, 1), Setting(32, 4)

ADAPTERS = (
    Adapter("by hand", protocols.GRPC, _module("by_hand")),
    Adapter(
        "mosec",
        protocols.http1("/inference"),
        _module("mosec"),
        _requires("mosec==0.9.8", *_MESSAGES),
        (SOON, LATER),
    ),
    Adapter(
        "LitServe",
        protocols.http1("/predict"),
        _module("litserve"),
        _requires("litserve==0.2.19", *_MESSAGES),
        (AT_ONCE, SOON, LATER),
    ),
    # Here the milliseconds are those beyond which it refuses requests.
    Adapter(
        "BentoML",
        protocols.http1("/recommend"),
        _module("bentoml"),
        _requires("bentoml==1.4.39", *_MESSAGES),
        (Setting(32, 1_000),),
    ),
    Adapter(
        "Ray Serve",
        protocols.GRPC,
        _module("ray_serve"),
        _requires("ray[serve]==2.60.0", _same("grpcio"), _same("psutil"), *_MESSAGES),
        (AT_ONCE, SOON),
    ),
    Adapter(
        "MLServer",
        protocols.model_infer(BY_HAND, joined=True),
        _module("mlserver"),
        _requires("mlserver==1.7.1", "numpy<2"),
        (AT_ONCE, SOON, LATER),
    ),
    Adapter(
        "Triton by hand", protocols.model_infer(BY_HAND), partial(_triton, BY_HAND), TRITON, (AT_ONCE, SOON), "triton"
    ),
    Adapter(
        "Triton, Fathom's repository", protocols.model_infer(MODEL), partial(_triton, MODEL), TRITON, shares="triton"
    ),
)


def chosen(text: str) -> list[Adapter]:
    """Those that a list with commas names, "all" for all; raises ConfigError for a name that there is not."""
    known = {slug(each.name): each for each in ADAPTERS}
    if text == "all":
        return list(known.values())
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise ConfigError(f"no peer is called {name}; there are {', '.join(known)}")
    return [known[name] for name in names]


def slug(name: str) -> str:
    """A name as the command line has it: ``triton-by-hand``."""
    return "-".join(name.lower().replace(",", "").replace("'", "").split())
