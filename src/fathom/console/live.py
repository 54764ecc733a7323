"""What a server's /metrics say of the last minutes."""

import asyncio
import ssl
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from fathom.connection import Connection
from fathom.errors import ConfigError, ConnectError, brief

#: Between two scrapes, in seconds; the page asks every two.
EVERY_S = 1.8
#: After so many seconds without a scrape, what changed is no rate of now.
TOO_LONG_S = 15.0
#: Points that are kept: five minutes of one every two seconds.
MOST_POINTS = 150
#: Of one scrape, in bytes and seconds.
LARGEST, WITHIN_S = 8 << 20, 3.0

Key = TypeVar("Key")


@dataclass(frozen=True)
class Snapshot:
    """Metrics of a server at one time, over all its bundles and workers.

    ``time_s``: of a clock that never goes back. ``requests`` by (status, depth, reason). ``latency``: how many requests
    took at most so many seconds, inf among them. ``unix_s``: seconds since 1970.
    """

    time_s: float
    unix_s: float
    requests: Mapping[tuple[str, str, str], float]
    latency: Mapping[float, float]
    queued: float
    in_flight: float

    @classmethod
    def parse(cls, texts: Iterable[str], *, time_s: float, unix_s: float) -> "Snapshot":
        """The sum of several workers' metrics; raises ConnectError for a text that is not Prometheus'."""
        requests: Counter[tuple[str, str, str]] = Counter()
        latency: Counter[float] = Counter()
        gauges: Counter[str] = Counter()
        try:
            for family in (each for text in texts for each in text_string_to_metric_families(text)):
                for sample in family.samples:
                    if sample.name == "fathom_requests_total":
                        labels = sample.labels
                        requests[labels["status"], labels["depth"], labels["reason"]] += sample.value  # type: ignore[assignment]
                    elif sample.name == "fathom_request_seconds_bucket":
                        latency[float(sample.labels["le"])] += sample.value  # type: ignore[assignment]
                    elif sample.name in ("fathom_queue_depth", "fathom_in_flight"):
                        gauges[sample.name] += sample.value  # type: ignore[assignment]
        except (ValueError, KeyError) as error:
            raise ConnectError(f"the metrics cannot be read: {brief(error, 120)}") from None
        return cls(time_s, unix_s, requests, latency, gauges["fathom_queue_depth"], gauges["fathom_in_flight"])


@dataclass(frozen=True)
class Point:
    """What happened between two snapshots, as rates in 1/s and times in ms; None where nothing was answered.

    ``depths``: the share of answers by depth. ``errors``: refused or failed requests by status. ``lowered``: the share
    of answers that a deadline made shallower.
    """

    unix_s: float
    requests: float
    p50_ms: float | None
    p99_ms: float | None
    queued: float
    in_flight: float
    lowered: float | None
    depths: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


def between(before: Snapshot, after: Snapshot) -> Point:
    """The point of two snapshots; where counters have fallen, a server was restarted, and all that it counts is new."""
    seconds = after.time_s - before.time_s
    restarted = any(after.requests.get(key, 0.0) < count for key, count in before.requests.items())
    requests = _increase({} if restarted else before.requests, after.requests)
    latency = _increase({} if restarted else before.latency, after.latency)
    answered: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    lowered = 0.0
    for (status, depth, reason), count in requests.items():
        if status == "OK":
            answered[depth] += count  # type: ignore[assignment]
            lowered += count if reason == "deadline" else 0.0
        else:
            errors[status] += count  # type: ignore[assignment]
    total = answered.total()
    return Point(
        unix_s=after.unix_s,
        requests=(total + errors.total()) / seconds,
        p50_ms=quantile_ms(latency, 0.5),
        p99_ms=quantile_ms(latency, 0.99),
        queued=after.queued,
        in_flight=after.in_flight,
        lowered=lowered / total if total else None,
        depths={depth: count / total for depth, count in sorted(answered.items(), key=_depth) if count},
        errors={status: count / seconds for status, count in sorted(errors.items()) if count},
    )


def _increase(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, float]:
    return {key: count - before.get(key, 0.0) for key, count in after.items()}


def _depth(entry: tuple[str, float]) -> int:
    return int(entry[0]) if entry[0].isdecimal() else -1


def quantile_ms(latency: Mapping[float, float], share: float) -> float | None:
    """A quantile in milliseconds from cumulative counts by upper bound in seconds; None where there are none.

    Linear within a bucket, and the largest finite bound beyond it, as Prometheus' ``histogram_quantile`` does.
    """
    bounds = sorted(latency)
    total = latency[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    low, below = 0.0, 0.0
    for bound in bounds:
        if latency[bound] >= share * total:
            if bound == float("inf"):
                break
            return 1e3 * (low + (bound - low) * (share * total - below) / (latency[bound] - below))
        low, below = bound, latency[bound]
    return 1e3 * low


def check_url(url: str) -> str:
    """The address of a server's metrics; raises ConfigError for what cannot be one."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ConfigError(f"--metrics-url {brief(url)}: give an address, as http://127.0.0.1:9464/metrics")
    if parts.username is not None or parts.password is not None:
        # Not repeated here: it may well be a secret.
        raise ConfigError("--metrics-url has a user or a password in it; the metrics port asks for none")
    return url


class LiveMetrics:
    """The last minutes of one server; scraped while somebody looks, once for all who do.

    ``urls``: of the metrics of every worker, which are asked with the authorization and the trust of a ``connection``.
    """

    def __init__(self, urls: Sequence[str], connection: Connection | None = None) -> None:
        self.urls = tuple(map(check_url, urls))
        self._points: deque[Point] = deque(maxlen=MOST_POINTS)
        self._last: Snapshot | None = None
        self._reading = asyncio.Lock()
        # Metrics are near; what a proxy would say of them is not.
        authority = None if connection is None else connection.authority
        context = ssl.create_default_context(cadata=None if authority is None else authority.decode())
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        shown = {} if connection is None else connection.metadata
        self._headers = {name: value for name, value in shown.items() if name == "authorization"}

    async def points(self) -> list[Point]:
        """Every point, oldest first; the first look has none yet. Raises ConnectError when metrics cannot be read."""
        async with self._reading:
            if self._last is None or time.monotonic() - self._last.time_s >= EVERY_S:
                texts = await asyncio.gather(*(asyncio.to_thread(self._fetch, url) for url in self.urls))
                self._add(Snapshot.parse(texts, time_s=time.monotonic(), unix_s=time.time()))
            return list(self._points)

    def _add(self, now: Snapshot) -> None:
        if self._last is not None:
            if now.time_s - self._last.time_s > TOO_LONG_S:
                self._points.clear()
            else:
                self._points.append(between(self._last, now))
        self._last = now

    def _fetch(self, url: str) -> str:
        try:
            with self._opener.open(urllib.request.Request(url, headers=self._headers), timeout=WITHIN_S) as response:
                data = response.read(LARGEST + 1)
        except HTTPError as error:
            error.close()
            raise ConnectError(f"{url}: no metrics: {error.code} {brief(error.reason)}") from None
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise ConnectError(
                f"{url}: no metrics: {brief(getattr(reason, 'strerror', None) or reason, 120)}"
            ) from None
        if len(data) > LARGEST:
            raise ConnectError(f"{url}: more than {LARGEST >> 20} MB, so not a server's metrics")
        return str(data, "utf-8", "replace")
