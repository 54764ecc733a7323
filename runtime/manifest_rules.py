"""What must be true of a manifest beyond its schema, so that each depth runs its own engines.

Each rule gives the words of what is wrong, for the one line with which a bundle is refused.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import PurePosixPath

from fathom.errors import brief
from fathom.runtime.manifest import (
    CATALOGUE_FILE,
    CHANGES_FILE,
    CONTEXT_FILES,
    COUNTING_FILES,
    INDEX_FILE,
    POPULARITY_FILE,
    SELECTOR_FILE,
    TEXT_FILES,
    TRANSITIONS_FILE,
    VECTORS_FILE,
    Manifest,
    MetricInterval,
)

_ITEM_FILES = (CATALOGUE_FILE, VECTORS_FILE, POPULARITY_FILE, TRANSITIONS_FILE, SELECTOR_FILE)
_SUFFIXES = {"onnx": ".onnx", "ort": ".ort", "executorch": ".pte"}
_CHAINS = ("prefix", "permuted-prefix")


def first_broken_rule(manifest: Manifest) -> str | None:
    """What is wrong with a manifest, if anything."""
    for rule in (_model, _layers, _engine_names, _depths, _counting, _retrieval, _extension, _plans, _figures, _listed):
        words = next(rule(manifest), None)
        if words is not None:
            return words
    return None


def _model(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    if model.width % model.heads:
        yield f"a width of {model.width} is not a multiple of {model.heads} heads"
    if not set(manifest.layer_precision) <= set(range(model.layers)):
        yield "layer_precision names a layer that the model does not have"


def _layers(manifest: Manifest) -> Iterator[str]:
    """Those of a plan: layer 0 first, each once, and a deeper depth executes all that a shallower one does."""
    for depth, info in manifest.depths.items():
        layers = info.layers
        if len(layers) != depth or len(set(layers)) != depth:
            yield f"depth {depth} executes {len(set(layers))} layers"
        if layers[0] != 0 or max(layers) >= manifest.model.layers:
            yield f"depth {depth} does not begin with layer 0, or has a layer that the model does not have"
        if manifest.strategy not in _CHAINS[1:] and list(layers) != sorted(layers):
            yield f"depth {depth} executes its layers in another order than {manifest.strategy} does"
        if manifest.strategy == "prefix" and layers != tuple(range(depth)):
            yield f"depth {depth} does not execute the first {depth} layers, as prefix does"
    ordered = [manifest.depths[depth].layers for depth in sorted(manifest.depths)]
    for short, long in pairwise(ordered):
        if not set(short) <= set(long):
            yield f"depth {len(long)} lacks a layer of depth {len(short)}"
        if manifest.strategy in _CHAINS and long[: len(short)] != short:
            yield f"depth {len(long)} does not go on from depth {len(short)}, as {manifest.strategy} does"


def _engine_names(manifest: Manifest) -> Iterator[str]:
    """An engine file is named after the depth that it ends at."""
    suffix = _SUFFIXES[manifest.format]
    for depth, info in manifest.depths.items():
        known = {f"engines/depth-{each:02d}{suffix}": each for each in range(1, depth + 1)}
        ends = [known.get(name, 0) for name in info.segments]
        if 0 in ends or ends != sorted(set(ends)) or ends[-1] != depth:
            yield f"depth {depth} runs {brief(', '.join(info.segments))}: no engines that end there"
    extension = manifest.extension
    if extension is not None:
        names = {each: f"engines/extend-{each:02d}{suffix}" for each in extension.segments}
        if extension.segments != names or extension.context != f"engines/extend-context{suffix}":
            yield "its extension does not name each engine after the depth that it ends at"
        if extension.steps != {each: f"engines/step-{each:02d}{suffix}" for each in extension.steps}:
            yield "its extension does not name each step after its depth"


def _depths(manifest: Manifest) -> Iterator[str]:
    """A chain, where each depth runs the engines of the one before and its own; or one whole engine per depth."""
    chains = [manifest.depths[depth].segments for depth in sorted(manifest.depths)]
    cumulative = all(long[: len(short)] == short for short, long in pairwise(chains))
    whole = all(len(segments) == 1 for segments in chains)
    if manifest.format == "executorch" and not whole:
        yield "an engine for ExecuTorch is whole: a depth has one"
    if manifest.format != "executorch" and manifest.strategy in _CHAINS and not cumulative:
        yield f"a depth does not run the engines of the shallower ones first, as {manifest.strategy} does"
    if not cumulative and not whole:
        yield "its depths are neither a chain of engines nor one whole engine each"


def _counting(manifest: Manifest) -> Iterator[str]:
    if manifest.counting is None:
        return
    if set(manifest.counting.weights) != set(manifest.depths):
        yield "its counting exit does not have a weight for each depth"
    if manifest.counting.window > manifest.model.max_history:
        yield "its counting exit looks at more items than max_history"


def _retrieval(manifest: Manifest) -> Iterator[str]:
    found = manifest.retrieval
    if found is None:
        if INDEX_FILE in manifest.files:
            yield "it lists an index of its items but not how they are searched by it"
        return
    levels = found.levels
    for less, more in pairwise(levels):
        if more.wanted <= less.wanted or more.effort < less.effort or more.candidates < less.candidates:
            yield "its index makes less effort where more items are wanted"
    if any(level.candidates < level.wanted for level in levels):
        yield "its index gives fewer items than are wanted"
    if (found.kind == "hnsw") != (found.lists == 0) or (found.lists and levels[-1].effort > found.lists):
        yield "its index looks through more lists than it has"
    if set(found.recall) != set(manifest.depths) or set(found.loss) != set(manifest.depths):
        yield "its index was not measured at each depth"
    for recall in found.recall.values():
        if not 0 <= recall.low <= recall.high <= 1:
            yield "the recall of its index is no interval between 0 and 1"


def _extension(manifest: Manifest) -> Iterator[str]:
    extension = manifest.extension
    if extension is None:
        return
    deepest = manifest.depths[max(manifest.depths)]
    ends = {int(PurePosixPath(name).stem.removeprefix("depth-")) for name in deepest.segments}
    if set(extension.segments) != ends or not set(manifest.depths) <= ends:
        yield "its extension has other segments than its deepest depth"
    if extension.steps and set(extension.steps) != set(manifest.depths):
        yield "its extension has steps of other depths than its own"


def _plans(manifest: Manifest) -> Iterator[str]:
    engines = {name for info in manifest.depths.values() for name in info.segments}
    for plan in manifest.plans:
        if not engines == set(plan.segments) == set(plan.built_from):
            yield "a TensorRT plan is not of the bundle's engines"
        if len(set(plan.segments.values())) != len(engines):
            yield "a TensorRT plan runs two engines as one"
        if any(not name.startswith("plans/") for name in plan.segments.values()):
            yield "a TensorRT plan lies outside of plans/"
        if plan.flavour == "tensorrt" and None in (plan.gpu, plan.platform, plan.precision):
            yield "a TensorRT plan does not name the GPU, platform and precision that it was built for"
        if list(plan.histories) != sorted(set(plan.histories)) or plan.histories[-1] < manifest.model.max_history:
            yield "the histories of a TensorRT plan do not ascend to max_history"


def _figures(manifest: Manifest) -> Iterator[str]:
    for depth, quality in manifest.quality.items():
        for metric, value in quality.items():
            if not 0 <= value.low <= value.high <= 1 or not 0 <= value.value <= 1:
                yield f"the quality {brief(metric, 20)} of depth {depth} is no interval between 0 and 1"
    if manifest.text is not None and not -1 <= manifest.text.cosine.low <= manifest.text.cosine.high <= 1:
        yield "the cosine of its text encoder is no interval between -1 and 1"
    lost = [info.loss for info in manifest.depths.values() if info.loss is not None]
    lost += [] if manifest.retrieval is None else manifest.retrieval.loss.values()
    figures: list[Mapping[str, MetricInterval]] = [*manifest.strategy_evidence.values()]
    told = [
        each.gain for each in (manifest.request_time, manifest.context) if each is not None and each.gain is not None
    ]
    for figure in [*lost, *told, *(each for found in figures for each in found.values())]:
        if figure.low > figure.high:
            yield "an interval ends before it begins"


def _listed(manifest: Manifest) -> Iterator[str]:
    used = [*_ITEM_FILES, *(name for info in manifest.depths.values() for name in info.segments)]
    if manifest.counting is not None:
        used += COUNTING_FILES
    if manifest.request_time is not None:
        used.append(CHANGES_FILE)
    elif CHANGES_FILE in manifest.files:
        yield "it lists what the time of a request changes, but does not say that it does"
    if manifest.context is not None and manifest.context.gain is not None:
        used += CONTEXT_FILES
    elif not manifest.files.keys().isdisjoint(CONTEXT_FILES):
        yield "it lists what the context of a request changes, but does not say that it does"
    elif manifest.context is not None and any(manifest.context.features.values()):
        yield "it knows values of a context, but not what they add"
    if manifest.text is not None:
        used += TEXT_FILES
    if manifest.retrieval is not None:
        used.append(INDEX_FILE)
    if manifest.extension is not None:
        used += [manifest.extension.context, *manifest.extension.files]
    used += [name for plan in manifest.plans for name in plan.segments.values()]
    for name in used:
        if name not in manifest.files:
            yield f"it does not list {brief(name)}"
