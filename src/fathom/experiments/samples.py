"""From a log to the units of each arm: which arm a unit counts for, and its number for a metric."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.errors import optional
from fathom.experiments.comparison import Sample
from fathom.experiments.config import Metric
from fathom.experiments.exposures import Log

DAY_S = 86_400.0


@dataclass(frozen=True)
class Units:
    """The units that count at this look.

    ``table``: a polars frame of unit, arm, covariate and requests. ``exposures`` and ``outcomes``: what counts of the
    log, both with a column unit. ``moved``: units that were seen in more than one arm; they count for their first.
    ``waiting``: units whose window has not passed yet. ``unmatched``: outcomes of requests that are not in the log.
    """

    table: Any
    exposures: Any
    outcomes: Any
    moved: int
    waiting: int
    unmatched: int

    def requests(self, arm: str) -> int:
        """How many requests of an arm's units count."""
        pl = optional("polars", "train")
        return int(self.table.filter(pl.col("arm") == arm)["requests"].sum())

    def sample(self, arm: str, metric: Metric) -> Sample:
        """An arm's units for one metric."""
        pl = optional("polars", "train")
        units = self.table.filter(pl.col("arm") == arm)
        numbers = self._measured(metric) if metric.measured else self._reported(metric)
        joined = units.join(numbers, on="unit", how="left", maintain_order="left")
        if metric.measured:
            # A unit of which nothing was measured says nothing of the ratio.
            joined = joined.filter(pl.col("count") > 0)
        totals = _floats(joined["total"].fill_null(0.0))
        if metric.form == "any":
            totals = (totals > 0).astype(np.float64)
        counts = _floats(joined["count" if metric.measured else "requests"]) if metric.form == "per_request" else None
        known = joined["covariate"].null_count() < len(joined)
        return Sample(totals, counts, _floats(joined["covariate"]) if known else None)

    def _measured(self, metric: Metric) -> Any:
        """Unit, total and count of what the server measured."""
        pl = optional("polars", "train")
        value = pl.col(metric.measured).cast(pl.Float64)
        if metric.above is not None:
            value = (value > metric.above).cast(pl.Float64)
        return self.exposures.group_by("unit").agg(value.sum().alias("total"), value.count().alias("count"))

    def _reported(self, metric: Metric) -> Any:
        """Unit and total of the outcomes of the metric's kind."""
        pl = optional("polars", "train")
        chosen = self.outcomes.filter(pl.col("kind") == metric.outcome)
        return chosen.group_by("unit").agg(pl.col("value").sum().alias("total"))


def _floats(column: Any) -> Any:
    return column.to_numpy().astype(np.float64)


def units_of(log: Log) -> Units:
    """Every unit with its first arm, and what counts of its requests and outcomes."""
    pl = optional("polars", "train")
    exposures = log.exposures.filter(pl.col("arm").is_in(list(log.experiment.arms)))
    by_unit = exposures.group_by("unit", maintain_order=True).agg(
        pl.col("arm").first(),
        pl.col("arm").n_unique().alias("arms"),
        pl.col("time_s").first().alias("first_s"),
        pl.col("covariate").first(),
    )
    moved = int((by_unit["arms"] > 1).sum())
    outcomes = log.outcomes.join(exposures.select("request_id", "unit"), on="request_id", how="inner")
    unmatched = len(log.outcomes) - len(outcomes)
    waiting = 0
    if log.experiment.window_days is not None and len(exposures):
        window_s = log.experiment.window_days * DAY_S
        times = [table["time_s"].max() for table in (log.exposures, log.outcomes) if len(table)]
        ripe = by_unit.filter(pl.col("first_s") + window_s <= max(times))
        waiting, by_unit = len(by_unit) - len(ripe), ripe
        exposures, outcomes = (
            table.join(by_unit.select("unit", "first_s"), on="unit", how="inner").filter(
                pl.col("time_s") < pl.col("first_s") + window_s
            )
            for table in (exposures, outcomes)
        )
    counted = exposures.group_by("unit").agg(pl.len().alias("requests"))
    table = by_unit.join(counted, on="unit", how="inner", maintain_order="left")
    return Units(table, exposures, outcomes, moved, waiting, unmatched)
