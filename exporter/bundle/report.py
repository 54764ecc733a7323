"""What ``fathom bundle inspect`` and ``quality`` show of a manifest: rows of text, the header first."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from fathom.runtime.engines.plans import FLAVOURS
from fathom.runtime.manifest import (
    COUNTING_FILES,
    ContextInfo,
    Manifest,
    MetricInterval,
    RetrievalInfo,
    TextInfo,
)

Rows = list[list[str]]

#: Shown by default; a manifest may hold more.
METRICS = ("hr@10", "ndcg@10", "mrr")


def fact_rows(manifest: Manifest) -> Rows:
    """Name and value of what holds for the whole bundle."""
    model, source = manifest.model, manifest.source
    size = sum(entry.bytes for entry in manifest.files.values())
    timed = model.uses_timestamps or manifest.request_time is not None
    titles = [f"{FLAVOURS[plan.flavour].title} {plan.version}" for plan in manifest.plans]
    gpus = ", ".join(
        f"{plan.compute_capability} ({title}{f', {plan.gpu}' if plan.gpu else ''})"
        for plan, title in zip(manifest.plans, titles, strict=True)
    )
    return [
        ["bundle", f"{manifest.name}, version {manifest.version}, created {manifest.created}"],
        ["engines", f"{manifest.format}, {manifest.precision}, {_strategy(manifest)}"],
        *([["GPU plans", gpus]] if gpus else []),
        ["model", f"{model.block}, {model.layers} layers, width {model.width}, {model.heads} heads"],
        ["history", f"at most {model.max_history} items, {'with' if timed else 'without'} timestamps"],
        ["items", f"{manifest.items:,}, vectors in {manifest.item_precision}"],
        *([["new items", _placed(manifest.text)]] if manifest.text is not None else []),
        *([["request time", _added(manifest.request_time.gain)]] if manifest.request_time is not None else []),
        *([["context", _told(manifest.context)]] if manifest.context is not None else []),
        *([["search", _searched(manifest.retrieval)]] if manifest.retrieval is not None else []),
        ["size", f"{format_bytes(size)} in {len(manifest.files)} files"],
        ["profile", manifest.profile or "all"],
        ["dataset", source.dataset[:12]],
        ["checkpoint", source.checkpoint[:12]],
        ["plan", source.plan[:12]],
        ["made by", f"Fathom {source.fathom}" + _commit(source.commit)],
    ]


def depth_rows(manifest: Manifest) -> Rows:
    """Per depth: layers, engine files and their size, parity with torch, and NDCG@10.

    Where there is a counting exit, also what it weighs in the scores; where engines have fewer bits, what that loses.
    """
    reduced = any(info.loss is not None for info in manifest.depths.values())
    counting = manifest.counting
    rows = [["depth", "layers in order", "engines", "size", "max error", "same top 10", "NDCG@10"]]
    rows[0] += ["lost"] * reduced + ["counting"] * (counting is not None)
    if counting is not None:
        size = sum(manifest.files[name].bytes for name in COUNTING_FILES)
        figures = [format_bytes(size), "", "", _cell(counting.quality, "ndcg@10")]
        rows.append(["0", "none", "", *figures, *[""] * reduced, "alone"])
    for depth, info in sorted(manifest.depths.items()):
        size = sum(manifest.files[segment].bytes for segment in info.segments)
        rows.append(
            [
                str(depth),
                format_layers(info.layers),
                "+".join(PurePosixPath(segment).stem.removeprefix("depth-") for segment in info.segments),
                format_bytes(size),
                f"{info.parity.max_abs_error:.1e}",
                f"{info.parity.top10_agreement:.2%}",
                _cell(info.quality, "ndcg@10"),
                *([_percent(info.loss)] if info.loss else []),
                *([f"+ {counting.weights[depth]:g}"] if counting is not None else []),
            ]
        )
    return rows


def quality_rows(manifest: Manifest, metrics: Iterable[str] = METRICS) -> Rows:
    """Per depth: each metric on the test items with its 95 % interval."""
    measured = manifest.quality
    names = [name for name in metrics if any(name in quality for quality in measured.values())]
    rows = [["depth", *(name.upper() for name in names)]]
    return rows + [[str(depth), *(_cell(quality, name) for name in names)] for depth, quality in measured.items()]


def evidence_rows(manifest: Manifest) -> Rows:
    """Per figure on validation items (as ``NDCG@10 / 4``): each strategy compared; a star marks the one shipped."""
    evidence = manifest.strategy_evidence
    keys = list(dict.fromkeys(key for figures in evidence.values() for key in figures))
    rows = [["", *(name + " *" * (name == manifest.strategy) for name in evidence)]]
    for key in keys:
        metric, _, place = key.partition("/")
        rows.append([f"{metric.upper()} / {place}", *(_cell(figures, key) for figures in evidence.values())])
    return rows


def format_interval(interval: MetricInterval) -> str:
    """``.1030 [.0950, .1110]``."""
    return f"{_decimal(interval.value)} [{_decimal(interval.low)}, {_decimal(interval.high)}]"


def format_bytes(count: int) -> str:
    """``620 B``, ``41 kB``, ``1.9 MB``: decimal units."""
    if count < 1_000:
        return f"{count} B"
    return f"{count / 1e3:.0f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def format_layers(layers: Iterable[int]) -> str:
    """Layers in order with runs shortened: ``0-3 7 4-6``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _strategy(manifest: Manifest) -> str:
    segments = {segment for info in manifest.depths.values() for segment in info.segments}
    return f"{manifest.strategy} ({len(segments)} engines for {len(manifest.depths)} depths)"


def _placed(text: TextInfo) -> str:
    return f"by their texts, {text.features:,} features, cosine {format_interval(text.cosine)} to trained vectors"


def _added(gain: MetricInterval) -> str:
    return f"changes answers, {format_interval(gain)} of NDCG@10 added on validation items"


def _told(context: ContextInfo) -> str:
    if context.gain is None:
        return f"{', '.join(context.features)}: changes nothing"
    features = ", ".join(f"{name} ({count:,} values)" for name, count in context.features.items())
    return f"{features}: {_added(context.gain)}"


def _searched(found: RetrievalInfo) -> str:
    recall = min(each.value for each in found.recall.values())
    loss = max(each.value for each in found.loss.values())
    return f"by an index ({found.kind}): {recall:.2%} of the best ten items, {loss:.2%} of NDCG@10 lost, at worst"


def _commit(commit: str | None) -> str:
    if commit is None:
        return ""
    head, plus, changes = commit.partition("+")
    return f", commit {head[:12]}{plus}{changes}"


def _cell(figures: Mapping[str, MetricInterval], key: str) -> str:
    return format_interval(figures[key]) if key in figures else ""


def _percent(interval: MetricInterval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _decimal(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"
