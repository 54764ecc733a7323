"""Which TensorRT plans of a bundle may be run on this machine, and why the others may not."""

from fathom import installing
from fathom.errors import FathomError
from fathom.runtime.manifest import Manifest, Plan


class PlanRefusedError(FathomError):
    """No plan of a bundle can be run here; the words say why."""


def choose_plan(manifest: Manifest, *, library: str | None, capability: str | None) -> Plan:
    """The plan for this machine.

    ``library``: the installed version of TensorRT-RTX, ``capability``: of the GPU, as 8.9; None where there is none.
    Raises PlanRefusedError.
    """
    if library is None:
        raise PlanRefusedError(f"TensorRT-RTX is not installed; {installing('rtx')}")
    reasons = []
    for plan in manifest.plans:
        reason = why_refused(plan, manifest, library=library, capability=capability)
        if reason is None:
            return plan
        reasons.append(reason)
    raise PlanRefusedError("; ".join(reasons))


def why_refused(plan: Plan, manifest: Manifest, *, library: str, capability: str | None) -> str | None:
    """What speaks against running a plan on a machine with this library and GPU, if anything."""
    name = f"the plan for compute capability {plan.compute_capability}"
    if plan.version != library:
        return f"{name} is stale: TensorRT-RTX {plan.version} built it, {library} is installed"
    changed = [file for file, sha256 in plan.built_from.items() if manifest.files[file].sha256 != sha256]
    if changed:
        return f"{name} is stale: {changed[0]} has changed since"
    if plan.compute_capability != capability:
        return f"{name} is foreign: {f'this GPU has {capability}' if capability else 'there is no NVIDIA GPU here'}"
    return None
