"""Cuts a smaller Bundle with some depths of a bundle; runs without torch, on the device if need be."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError
from fathom.exporter.bundle.derive import derive_bundle, open_source
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import DepthInfo, Extension, Manifest, Plan


def slice_bundle(source: Path, profile: DeviceProfile, out: Path) -> Manifest:
    """Write to ``out`` the bundle with only the profile's depths and return its manifest.

    A depth of a chain keeps the segments before it, and every slice the counting exit and the index of the items.
    Everything else is copied unchanged, ``created`` included, so the same bundle and profile give the same slice.
    Raises BundleError for a source that is refused, ConfigError when it has none of the profile's depths or ``out`` is
    the source.
    """
    with open_source(source, out) as bundle:
        kept = [depth for depth in bundle.manifest.depths if depth in profile.depths]
        if not kept:
            raise ConfigError(
                f"{source}: has depths {_listed(bundle.manifest.depths)} but profile {profile.name} runs"
                f" {_listed(profile.depths)}"
            )
        return _write(bundle, kept, out, profile=profile.name)


def cut_depths(source: Path, depths: Collection[int], out: Path) -> Manifest:
    """Like ``slice_bundle`` with these depths, for no other profile; raises ConfigError for one that is not there."""
    with open_source(source, out) as bundle:
        held = bundle.manifest.depths
        if not depths or not set(depths) <= set(held):
            raise ConfigError(f"{source}: has depths {_listed(held)}, not {_listed(depths) or 'none'}")
        return _write(bundle, depths, out)


def _write(bundle: Bundle, depths: Collection[int], out: Path, **changes: Any) -> Manifest:
    manifest = bundle.manifest
    kept = {depth: info for depth, info in manifest.depths.items() if depth in depths}
    extension = manifest.extension
    if extension is not None:
        segments = {depth: file for depth, file in extension.segments.items() if depth <= max(kept)}
        steps = {depth: file for depth, file in extension.steps.items() if depth in kept}
        extension = extension.model_copy(update={"segments": segments, "steps": steps})
    engines, needed = _engines(manifest.depths, manifest.extension), _engines(kept, extension)
    counting = manifest.counting
    if counting is not None:
        weights = {depth: counting.weights[depth] for depth in kept}
        counting = counting.model_copy(update={"weights": weights})
    retrieval = manifest.retrieval
    if retrieval is not None:
        measured = {name: {depth: getattr(retrieval, name)[depth] for depth in kept} for name in ("recall", "loss")}
        retrieval = retrieval.model_copy(update=measured)
    plans = tuple(_of_plan(plan, needed) for plan in manifest.plans)
    drop = (engines | _files(manifest.plans)) - (needed | _files(plans))
    return derive_bundle(
        bundle,
        out,
        drop=drop,
        depths=kept,
        counting=counting,
        retrieval=retrieval,
        extension=extension,
        plans=plans,
        fits={},
        **changes,
    )


def check_precision(manifest: Manifest, profile: DeviceProfile) -> None:
    """Raise ConfigError where layers or item vectors are not stored in the profile's precision."""
    is_stored = manifest.precision, manifest.item_precision
    wanted = profile.precision, profile.item_precision
    if is_stored != wanted:
        raise ConfigError(
            f"layers and item vectors are {' and '.join(is_stored)}, and profile {profile.name} says"
            f" {' and '.join(wanted)}: build or export the checkpoint with this profile, or slice with --any-precision"
        )


def _engines(depths: Mapping[int, DepthInfo], extension: Extension | None) -> set[str]:
    engines = {segment for info in depths.values() for segment in info.segments}
    return engines | (set(extension.files) if extension else set())


def _files(plans: Iterable[Plan]) -> set[str]:
    return {file for plan in plans for file in plan.segments.values()}


def _of_plan(plan: Plan, engines: set[str]) -> Plan:
    segments = {engine: file for engine, file in plan.segments.items() if engine in engines}
    built_from = {engine: sha256 for engine, sha256 in plan.built_from.items() if engine in engines}
    return plan.model_copy(update={"segments": segments, "built_from": built_from})


def _listed(depths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(depths)))
