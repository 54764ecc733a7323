"""How many replicas Ray Serve is to run: by how long requests wait for the engine, and how busy engines are.

autoscaling_config:
  min_replicas: 2
  max_replicas: 8
  policy:
    policy_function: fathom.ray_serve.autoscaling:QueueTime
    policy_kwargs: {target_ms: 20}
"""

import math
import time
from collections.abc import Mapping
from typing import Any

from fathom.errors import ConfigError, brief

#: What each replica reports: the mean time of its requests in the queue, and the share of the time its engine runs.
QUEUE_MS, BUSY = "fathom_queue_ms", "fathom_busy"
#: Above FULL an engine has no room left, however requests fared: what must not wait gets depth 0, and does not queue.
FULL, AIM = 0.9, 0.7
#: At most so many times the replicas in one step: queues grow without bound where there is too much to do.
MOST_AT_ONCE = 2.0


class QueueTime:
    """A policy of Ray Serve, which adds delays and bounds. ``target_ms``: of the mean time in the queue.

    Load on the processor, or the number of ongoing requests, says less: under load a server first answers at shallower
    depths. Replicas are given back only as far as the engines of the others have room for their work.
    """

    def __init__(self, target_ms: float = 20.0) -> None:
        if isinstance(target_ms, bool) or not isinstance(target_ms, int | float) or not 0 < target_ms < math.inf:
            raise ConfigError(f"target_ms is {brief(target_ms)}; give a positive number of milliseconds")
        self._target_ms = float(target_ms)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The replicas that there should be; ``context``: Ray's AutoscalingContext."""
        reported: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        queues, busy = reported.get(QUEUE_MS, {}), reported.get(BUSY, {})
        if not queues or not busy:
            return context.target_num_replicas, {}
        return self.wanted(len(busy), _mean(queues), _mean(busy)), {}

    def wanted(self, replicas: int, queue_ms: float, busy: float) -> int:
        """For so many that run, and the means of what they report."""
        by_work = math.ceil(replicas * busy / AIM - 1e-9)
        if queue_ms > self._target_ms or busy > FULL:
            more = min(MOST_AT_ONCE, queue_ms / self._target_ms)
            return max(math.ceil(replicas * more - 1e-9), by_work, replicas)
        if queue_ms < self._target_ms / 2:
            return max(1, min(replicas, by_work))
        return replicas


class Report:
    """What a replica says of itself since it last said something."""

    def __init__(self) -> None:
        self._at_s, self._answered, self._queue_s = time.monotonic(), 0, 0.0
        self._engine_s: Mapping[str, float] = {}

    def next(self, answered: int, queue_s: float, engine_s: Mapping[str, float]) -> dict[str, float]:
        """From totals since the start: requests, seconds that they waited, and seconds that each engine ran."""
        now_s = time.monotonic()
        requests, waited_s, passed_s = answered - self._answered, queue_s - self._queue_s, now_s - self._at_s
        ran_s = max((total - self._engine_s.get(name, 0.0) for name, total in engine_s.items()), default=0.0)
        self._at_s, self._answered, self._queue_s, self._engine_s = now_s, answered, queue_s, dict(engine_s)
        return {
            QUEUE_MS: 1e3 * waited_s / requests if requests else 0.0,
            BUSY: min(1.0, ran_s / passed_s) if passed_s > 0 else 0.0,
        }


def _mean(values: Mapping[Any, float]) -> float:
    return sum(values.values()) / len(values)
