"""What a replay measured: percentiles, rates, statuses, depths; as JSON, as a table, as a picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fathom.artefacts import LOAD_PLOT, load_plot
from fathom.errors import MissingExtraError
from fathom.files import write_bytes, write_json

SCHEMA_VERSION = 1
# The replayer's own bound on open calls was reached: counted, never hidden.
NOT_SENT = "NOT_SENT"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it should have been sent, how late it was, when it ended (seconds after the start), and how.

    ``depth`` is 0 and ``reason`` is empty when there was no answer.
    """

    intended_s: float
    sent_s: float
    ended_s: float
    status: str
    depth: int = 0
    reason: str = ""

    @property
    def latency_ms(self) -> float:
        """From the intended moment, so that a stalled sender or server hides nothing (no coordinated omission)."""
        return (self.ended_s - self.intended_s) * 1e3


@dataclass(frozen=True)
class LatencyPercentiles:
    """Nearest-rank percentiles in milliseconds; a percentile that needs more samples than there are is the largest."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> "LatencyPercentiles | None":
        """None without values."""
        if not values_ms:
            return None
        ordered = sorted(values_ms)
        count = len(ordered)
        # Rank ceil(n p), in integers: 0.999 * 1000 is a little more than 999 in floating point.
        p50, p90, p99, p99_9 = (ordered[-(-count * permille // 1000) - 1] for permille in (500, 900, 990, 999))
        return cls(count, sum(ordered) / count, p50, p90, p99, p99_9, ordered[-1])


@dataclass(frozen=True)
class LoadReport:
    """One replay. Rates are per second; latencies count from the intended send time.

    ``latency``: of answers (status OK); ``latency_all``: of every request that was sent, errors too.
    ``send_lag``: how late the replayer itself was; when its p99 is not small, the figures are the replayer's.
    ``depths`` and ``reasons``: number of answers. ``transport``: the server's; empty where it did not say.
    """

    target: str
    bundle: str
    transport: str
    trace: Mapping[str, Any]
    deadline_ms: float
    requests: int
    duration_s: float
    offered_per_s: float
    achieved_per_s: float
    latency: LatencyPercentiles | None
    latency_all: LatencyPercentiles | None
    latency_by_depth: Mapping[int, LatencyPercentiles]
    send_lag: LatencyPercentiles | None
    statuses: Mapping[str, int]
    depths: Mapping[int, int]
    reasons: Mapping[str, int]
    samples: tuple[Sample, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the samples, as plain JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "samples"}
        for name in ("latency", "latency_all", "send_lag"):
            values[name] = asdict(values[name]) if values[name] else None
        values["latency_by_depth"] = {str(depth): asdict(each) for depth, each in self.latency_by_depth.items()}
        values["depths"] = {str(depth): count for depth, count in self.depths.items()}
        return {"schema_version": SCHEMA_VERSION, **values}

    def save(self, path: Path) -> None:
        """Write the report as JSON, and beside it the plot as ``.png`` when matplotlib is installed."""
        write_json(path, self.as_dict())
        self.plot(load_plot(path))

    def table(self) -> Table:
        """The report for a terminal."""
        served = f"{self.bundle}, transport {self.transport or 'unknown'}"
        table = Table(title=f"{self.requests} requests to {self.target} ({served})", show_header=False)
        table.add_row("offered / achieved", f"{self.offered_per_s:,.1f} / {self.achieved_per_s:,.1f} requests/s")
        for name, latency in (
            ("latency", self.latency),
            *((f"  depth {depth}", each) for depth, each in self.latency_by_depth.items()),
            ("latency with errors", self.latency_all),
            ("sent late by", self.send_lag),
        ):
            if latency:
                table.add_row(name, _line(latency))
        table.add_row("statuses", _mix(self.statuses))
        table.add_row("depths", _mix(self.depths))
        table.add_row("reasons", _mix(self.reasons))
        return table

    def plot(self, path: Path) -> None:
        """Latency over time and by percentile; raises MissingExtraError without matplotlib."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtraError("matplotlib", "load") from None
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        over_time, by_percentile = figure.subplots(1, 2)
        groups = _groups(self.samples)
        for number, (name, samples) in enumerate(groups.items()):
            latencies = np.sort([each.latency_ms for each in samples])
            colour = f"C{number}"
            over_time.scatter(
                [s.intended_s for s in samples], [s.latency_ms for s in samples], s=5, color=colour, alpha=0.6
            )
            beyond = 1 - np.arange(len(latencies)) / len(latencies)
            by_percentile.step(1 / beyond, latencies, where="post", color=colour, label=f"{name} ({len(samples)})")
        for axes in (over_time, by_percentile):
            axes.set_ylabel("latency from the intended send time (ms)")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.grid(visible=True, alpha=0.3)
        over_time.set_xlabel("time (s)")
        over_time.set_title(f"{self.offered_per_s:,.0f} requests/s offered, {self.achieved_per_s:,.0f} answered")
        by_percentile.set_xscale("log")
        by_percentile.set_xticks([1, 2, 10, 100, 1000], ["0", "p50", "p90", "p99", "p99.9"])
        by_percentile.set_xlabel("percentile")
        if groups:
            by_percentile.legend(loc="lower right", fontsize="small")
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": LOAD_PLOT.mark})
        write_bytes(path, buffer.getvalue())


def summarise(
    samples: Sequence[Sample],
    *,
    target: str,
    bundle: str,
    transport: str,
    trace: Mapping[str, Any],
    deadline_ms: float,
    offered_s: float,
) -> LoadReport:
    """The report over samples; ``offered_s`` is the time in which they should all have been sent."""
    answered = [each for each in samples if each.status == "OK"]
    sent = [each for each in samples if each.status != NOT_SENT]
    duration_s = max([offered_s, *(each.ended_s for each in samples)])
    depths = Counter(each.depth for each in answered)
    return LoadReport(
        target=target,
        bundle=bundle,
        transport=transport,
        trace=dict(trace),
        deadline_ms=deadline_ms,
        requests=len(samples),
        duration_s=duration_s,
        offered_per_s=len(samples) / offered_s,
        achieved_per_s=len(answered) / duration_s,
        latency=LatencyPercentiles.of([each.latency_ms for each in answered]),
        latency_all=LatencyPercentiles.of([each.latency_ms for each in sent]),
        latency_by_depth={
            depth: latency
            for depth in sorted(depths)
            if (latency := LatencyPercentiles.of([each.latency_ms for each in answered if each.depth == depth]))
        },
        send_lag=LatencyPercentiles.of([(each.sent_s - each.intended_s) * 1e3 for each in sent]),
        statuses=dict(sorted(Counter(each.status for each in samples).items())),
        depths=dict(sorted(depths.items())),
        reasons=dict(sorted(Counter(each.reason for each in answered).items())),
        samples=tuple(samples),
    )


def _groups(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Answers by depth, then errors by status; what was never sent has no latency."""
    groups: dict[str, list[Sample]] = {}
    for each in sorted(samples, key=lambda sample: (sample.status != "OK", sample.depth, sample.status)):
        if each.status != NOT_SENT:
            groups.setdefault(f"depth {each.depth}" if each.status == "OK" else each.status, []).append(each)
    return groups


def _line(latency: LatencyPercentiles) -> str:
    return (
        f"p50 {latency.p50_ms:.2f}  p90 {latency.p90_ms:.2f}  p99 {latency.p99_ms:.2f}"
        f"  p99.9 {latency.p99_9_ms:.2f}  max {latency.max_ms:.2f} ms"
    )


def _mix(counts: Mapping[Any, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name}: {count} ({count / total:.1%})" for name, count in counts.items()) or "none"
