"""A claim is watched, given up, and where that is wanted certified again and watched on."""

import numpy as np
import pytest

from fathom.selector.certificate import Claim
from fathom.selector.monitor import Distinct, Monitor
from fathom.selector.routing import Mixture

DEPTHS = (4, 8, 16)
CLAIM = Claim(
    DEPTHS, "mixture", 0.05, 1000, Mixture("mixture", DEPTHS, (0.5, 0.0, 0.5)), kept=1.0, saved=0.4, agreement=0.9
)
COSTS = {4: 1.0, 8: 2.0, 16: 4.0}


def alarmed(monitor: Monitor) -> str:
    """Its routing sends half of the requests to depth 4, whose answers no longer agree; returns what it says."""
    for depth in (4, 16) * 500:
        monitor.count(depth)
    while not monitor.alarm:
        said = monitor.add([0.5])
    assert said is not None
    return said


def test_answers_that_agree_as_promised_raise_no_alarm() -> None:
    monitor = Monitor(CLAIM, 0.01)
    assert monitor.second_runs(4) == (16,)
    assert monitor.second_runs(16) == ()
    assert all(monitor.add([1.0]) is None for _ in range(1000))
    assert not monitor.alarm


def test_the_alarm_stays_where_nothing_certifies_again() -> None:
    monitor = Monitor(CLAIM, 0.01)
    said = alarmed(monitor)
    assert said.startswith("the certificate for depths 4, 8, 16 no longer fits: of ")
    assert said.endswith("their requests now get depth 16, until the bundle is exchanged")
    assert [monitor.second_runs(depth) for depth in DEPTHS] == [(), (), ()]


def test_after_the_alarm_every_depth_is_tried_until_another_routing_is_certified() -> None:
    rng, monitor = np.random.default_rng(0), Monitor(CLAIM, 0.01, COSTS)
    again = monitor.recertification
    assert again is not None
    assert alarmed(monitor).endswith("certified: the next attempt takes 500 requests at every depth")
    # An answer that was routed before the alarm and comes after it says nothing.
    assert [monitor.second_runs(depth) for depth in DEPTHS] == [(), (), (4, 8)]
    while monitor.alarm:
        said = monitor.add([0.5, rng.binomial(10, 0.97) / 10])
    assert (again.attempts, again.succeeded, again.gathered) == (1, 1, 0)
    # Half of the requests lacked at most a tenth, so all together lack at most a twentieth.
    assert isinstance(monitor.routing, Mixture)
    four, eight, _ = monitor.routing.shares
    assert four == 0
    assert 0.03 * eight <= 0.05 <= 0.05 / eight
    assert monitor.evidence.expected == pytest.approx(1 - 0.05 / eight)
    assert said is not None
    assert f": certified again, on agreement: {monitor.routing.words};" in said
    # That is watched in turn, and once more no more is allowed than at first.
    assert monitor.second_runs(8) == (16,)
    assert monitor.evidence.count == 0
    alarmed(monitor)
    while monitor.alarm:
        monitor.add([0.5, 0.99])
    assert (again.attempts, again.succeeded) == (2, 2)
    assert monitor.routing.shares == (0.0, 1.0, 0.0)


def test_where_no_depth_agrees_requests_stay_at_the_deepest() -> None:
    monitor = Monitor(CLAIM, 0.01, COSTS)
    alarmed(monitor)
    said = [text for _ in range(1500) if (text := monitor.add([0.0, 0.0])) is not None]
    assert monitor.alarm
    assert said == [
        f"the certificate for depths 4, 8, 16: attempt {n} to certify again has failed; the next attempt takes"
        f" {needed} requests at every depth"
        for n, needed in ((1, "1,000"), (2, "2,000"))
    ]


def test_a_history_counts_once_until_many_others_have_come() -> None:
    distinct = Distinct(most=3)
    assert [distinct.add(history) for history in (b"a", b"b", b"a", b"c")] == [True, True, False, True]
    assert distinct.add(b"a")
