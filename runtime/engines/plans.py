"""The two flavours of TensorRT, which of a bundle's plans may be run on this machine, and why the others may not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from fathom import installing
from fathom.errors import FathomError, MissingExtraError
from fathom.runtime.engines.gpu import Gpu, this_gpu, this_platform
from fathom.runtime.manifest import Manifest, Plan, PlanFlavour

#: Requests in the largest batch that TensorRT is given, and in the batch that it is tuned for.
MAX_BATCH, USUAL_BATCH = 32, 8
#: Why a plan is not run, from what is furthest from running to what is nearest.
REFUSALS = ("missing", "stale", "foreign", "broken")


class PlanRefusedError(FathomError):
    """No plan of a bundle can be run here; the words say why, ``kind`` is one of REFUSALS."""

    def __init__(self, words: str, kind: str) -> None:
        super().__init__(words)
        self.kind = kind


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries, whose Python interfaces are the same but for what names the GPU.

    ``ahead``: it builds for GPUs that are named to it. Otherwise it times kernels on the GPU that it builds for, and
    that is the one of the machine.
    """

    name: PlanFlavour
    title: str
    module: str
    extra: str
    ahead: bool

    def load(self) -> ModuleType:
        """The library, or MissingExtraError."""
        try:
            return import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: the bindings are there, a library that they load is not
            raise MissingExtraError(self.title, self.extra) from error

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return str(self.load().__version__)
        except MissingExtraError:
            return None


#: By name; where plans of both could be run, the first.
FLAVOURS: dict[str, Flavour] = {
    each.name: each
    for each in (
        Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", ahead=False),
        Flavour("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx", ahead=True),
    )
}


@dataclass(frozen=True)
class Machine:
    """What decides whether a plan can be run: the installed versions of the libraries, the GPU and the platform."""

    libraries: Mapping[str, str | None]
    gpu: Gpu | None
    platform: str

    @classmethod
    def here(cls, flavours: Collection[str]) -> "Machine":
        """This machine; only these libraries are loaded."""
        return cls({name: FLAVOURS[name].version() for name in flavours}, this_gpu(), this_platform())


def choose_plan(manifest: Manifest, machine: Machine) -> Plan:
    """The plan for a machine; PlanRefusedError where it has none."""
    order = list(FLAVOURS)
    refusals = []
    for plan in sorted(manifest.plans, key=lambda plan: order.index(plan.flavour)):
        refusal = why_refused(plan, manifest, machine)
        if refusal is None:
            return plan
        refusals.append(refusal)
    if not refusals:
        raise PlanRefusedError("the bundle has no TensorRT plans", "missing")
    words = "; ".join(dict.fromkeys(each for _, each in refusals))
    raise PlanRefusedError(words, max((kind for kind, _ in refusals), key=REFUSALS.index))


def why_refused(plan: Plan, manifest: Manifest, machine: Machine) -> tuple[str, str] | None:
    """What speaks against running a plan on a machine, if anything: one of REFUSALS, and words."""
    flavour = FLAVOURS[plan.flavour]
    installed = machine.libraries.get(plan.flavour)
    if installed is None:
        return "missing", f"{flavour.title} is not installed; {installing(flavour.extra)}"
    name = f"the {flavour.title} plan for compute capability {plan.compute_capability}"
    if plan.version != installed:
        return "stale", f"{name} is stale: {flavour.title} {plan.version} built it, {installed} is installed"
    changed = [file for file, sha256 in plan.built_from.items() if manifest.files[file].sha256 != sha256]
    if changed:
        return "stale", f"{name} is stale: {changed[0]} has changed since"
    if plan.precision not in (None, manifest.precision):
        return "stale", f"{name} is stale: it computes in {plan.precision}, the bundle is in {manifest.precision}"
    gpu = machine.gpu
    if gpu is None:
        return "foreign", f"{name} is foreign: there is no NVIDIA GPU here"
    if plan.compute_capability != gpu.capability:
        return "foreign", f"{name} is foreign: this GPU has {gpu.capability}"
    if plan.gpu not in (None, gpu.name):
        return "foreign", f"{name} is foreign: it was tuned for {plan.gpu}, this GPU is {gpu.name}"
    if plan.platform not in (None, machine.platform):
        return "foreign", f"{name} is foreign: it was built on {plan.platform}, this is {machine.platform}"
    return None
