"""Fathom's arms: each way that it can choose depths, as options of `fathom serve` and fields of requests."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fathom.benchmarks.server import StartedServer, started
from fathom.benchmarks.systems.overload import without_depth_0
from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import derive_bundle
from fathom.exporter.certification.certify import certify, measure_bundle, write_certificate
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE
from fathom.selector.certificate import KINDS, Certificate, Kind
from fathom.selector.chooser import DepthChooser
from fathom.training.dataset import Dataset

#: Real histories come again and again: no cache is to help, and no answer is computed twice.
QUIET = ("--reuse-mb", "0", "--feedback-share", "0")
RULES, LEARNED, CERTIFIED, AGREEMENT = "rules", "learned", "certified", "agreement"
DEADLINE, DEADLINE_ONLY = "deadline", "deadline-without-depth-0"
#: As many of each depth as the arm ``certified`` has answered at the same load, drawn by the client.
RANDOM = "random"
POLICIES = (CERTIFIED, AGREEMENT, LEARNED, RULES, DEADLINE, DEADLINE_ONLY)
PROFILE = "cloud"
EPS, DELTA = 0.05, 0.05


@dataclass(frozen=True)
class Arm:
    """``depth``: that each request asks for; None where the server, or the client's draw, decides."""

    name: str
    bundle: Path
    options: tuple[str, ...]
    depth: int | None = None

    @contextmanager
    def started(self) -> Iterator[StartedServer]:
        """Its server."""
        with started(self.bundle, *QUIET, *self.options) as server:
            yield server


def fixed(depth: int) -> str:
    """The name of an arm whose requests ask for a depth."""
    return f"depth-{depth}"


class Arms:
    """The arms of a bundle that are wanted and possible; ``left_out``: why others are not there."""

    def __init__(self, bundle: Path, depths: Sequence[int], wanted: str) -> None:
        self._bundle = bundle
        self._fixed = {fixed(depth): depth for depth in depths if depth}
        names = [*self._fixed, *POLICIES, RANDOM]
        self._wanted = set(names if wanted == "all" else filter(None, wanted.split(",")))
        if unknown := sorted(self._wanted - set(names)):
            raise ConfigError(f"no arm is called {unknown[0]}; there are {', '.join(names)}")
        self._stack = ExitStack()
        self.left_out: list[str] = []
        self.all: list[Arm] = []

    def __enter__(self) -> "Arms":
        self._folder = Path(self._stack.enter_context(TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prepare(self, dataset: Dataset | None) -> None:
        """Make the bundles and profiles that they need; ``dataset``: None where nothing is to be learned from."""
        plain = Arm("", self._bundle, ())
        self.all = [replace(plain, name=name, depth=depth) for name, depth in self._fixed.items() if self._asks(name)]
        with Bundle.open(self._bundle) as bundle:
            for name, certificate in self._certificates(bundle, dataset).items():
                if certificate is None or not _holds(bundle, certificate):
                    self.left_out.append(f"{name}: nothing is certified")
                else:
                    path = self._copy(bundle, name, certificate)
                    self.all.append(Arm(name, path, ("--policy", "certified")))
        without = ("--profile", str(without_depth_0(self._folder)))
        options: dict[str, tuple[str, ...]] = {RULES: ("--policy", "rule"), DEADLINE: ("--policy", "deepest")}
        options |= {DEADLINE_ONLY: ("--policy", "deepest", *without)}
        self.all += [replace(plain, name=name, options=given) for name, given in options.items() if self._asks(name)]
        if self._asks(RANDOM):
            if any(arm.name == CERTIFIED for arm in self.all):
                self.all.append(replace(plain, name=RANDOM))
            else:
                self.left_out.append(f"{RANDOM}: there is no mix of depths without the arm {CERTIFIED}")

    def _asks(self, name: str) -> bool:
        return name in self._wanted

    def _certificates(self, bundle: Bundle, dataset: Dataset | None) -> dict[str, Certificate | None]:
        own = bundle.certificate
        found: dict[str, Certificate | None] = {}
        kinds: dict[str, Kind] = {CERTIFIED: "quality", AGREEMENT: "agreement"}
        for name, kind in kinds.items():
            if self._asks(name):
                found[name] = None if own is None else _only(own, kind)
        if self._asks(LEARNED):
            found[LEARNED] = None if dataset is None else _learned(bundle, dataset)
        return found

    def _copy(self, bundle: Bundle, name: str, certificate: Certificate) -> Path:
        path = self._folder / name
        derive_bundle(bundle, path, drop={CERTIFICATE_FILE})
        with Bundle.open(path) as copy:
            write_certificate(copy, certificate)
        return path


def _only(certificate: Certificate, kind: Kind) -> Certificate | None:
    """Its claims of one kind, None where it has none."""
    if kind not in certificate.promises:
        return None
    return replace(certificate, promises={kind: certificate.promises[kind]}, claims=certificate.of(kind))


def _learned(bundle: Bundle, dataset: Dataset) -> Certificate | None:
    """By what is learned, of quality or, where that cannot be certified, of agreement."""
    measured = measure_bundle(bundle, dataset)
    sets = [tuple(bundle.manifest.served_depths)]
    for kind in KINDS:
        found = certify(bundle, measured, eps=EPS, delta=DELTA, family="learned", depth_sets=sets, kind=kind)
        if found.certified:
            return found
    return None


def _holds(bundle: Bundle, certificate: Certificate) -> bool:
    """Whether a server with the default profile follows it."""
    served = bundle.manifest.served_depths
    chooser = DepthChooser(certificate, served, policy="certified", alpha=DELTA)
    return chooser.policy(load_profile(PROFILE)).certified
