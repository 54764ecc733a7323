"""Requests follow the certificate, and feedback notices when it no longer fits."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine

from fathom.edge_profiles.profile import load_profile
from fathom.errors import ConfigError
from fathom.runtime import pipeline as pipeline_module
from fathom.runtime.bundle import Bundle
from fathom.runtime.cost import CostModel, Line
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.query import IndexedQuery
from fathom.runtime.settings import PipelineSettings
from fathom.selector.choice import DepthReason
from fathom.selector.chooser import DepthChooser
from fathom.selector.features import Features
from fathom.selector.learned import LossModel
from fathom.selector.routing import Learned, Mixture, coin

DEPTHS = (4, 8, 12, 16)
CLOUD, EDGE = load_profile("cloud"), load_profile("edge")
NOTHING = Features(*[math.nan] * len(Features._fields))
ITEMS = np.array([1, 2, 3])


@pytest.fixture(scope="module")
def bundle(certified_bundle: Path) -> Bundle:
    return Bundle.open(certified_bundle)


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 ms per layer and request, instead of measuring: this machine's speed must not decide a test."""

    def measure(*_: Any, depths: Any, lengths: Any, **__: Any) -> CostModel:
        return CostModel({(d, n): Line(0.0, d * 1e-3) for d in depths for n in lengths}, tail=0.0)

    monkeypatch.setattr(pipeline_module, "measure", measure)


@asynccontextmanager
async def running(
    bundle: Bundle, *, on_run: Callable[[int, int], None] | None = None, **settings: Any
) -> AsyncIterator[Pipeline]:
    engine = FakeEngine(bundle.vectors, DEPTHS, on_run=on_run)
    async with Pipeline(bundle, engine, settings=PipelineSettings(**settings)) as pipeline:
        yield pipeline


def histories(count: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 50, length) for _ in range(count)]


def second_runs(pipeline: Pipeline) -> int:
    """Answered requests that wait for their run at the deepest depth."""
    assert pipeline._feedback is not None
    return pipeline._feedback.waiting


async def ask(pipeline: Pipeline, items: np.ndarray, **changes: Any) -> Any:
    return await pipeline.recommend(IndexedQuery(items, k=10, profile=CLOUD, **changes))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_requests_get_their_shares_and_equal_ones_the_same_depth(bundle: Bundle) -> None:
    async with running(bundle, feedback_share=0.0) as pipeline:
        asked = histories(2000, 6)
        first = [(await ask(pipeline, items)).choice for items in asked]
        share = sum(each.depth == 4 for each in first) / len(first)
        assert abs(share - 0.75) <= 4 * math.sqrt(0.75 * 0.25 / len(first))
        assert {each.depth for each in first} == {4, 16}
        assert [(await ask(pipeline, items)).choice.depth for items in asked[:50]] == [d.depth for d in first[:50]]
        assert first[0].why.endswith("as certified: 75 % depth 4, 25 % depth 16")


async def test_the_deadline_still_has_the_last_word(bundle: Bundle) -> None:
    async with running(bundle) as pipeline:
        deep = next(items for items in histories(50, 6) if coin(items) >= 0.75)
        late = await ask(pipeline, deep, deadline_s=time.monotonic() + 0.0135)
        assert late.choice.reason is DepthReason.DEADLINE
        assert late.choice.depth in (8, 12)


async def test_answers_that_agree_raise_no_alarm(bundle: Bundle) -> None:
    async with running(bundle, feedback_share=1.0) as pipeline:
        for items in histories(300, 4):
            await ask(pipeline, items)
        monitor = pipeline.chooser.policy(CLOUD).monitor
        await until(lambda: not second_runs(pipeline) and monitor.evidence.count > 50)
        assert monitor.evidence.mean == 1.0
        assert not monitor.alarm


async def test_answers_that_no_longer_agree_raise_it_and_requests_fall_back(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(bundle, feedback_share=1.0) as pipeline:
        monitor = pipeline.chooser.policy(CLOUD).monitor
        with caplog.at_level(logging.WARNING, logger="fathom.runtime"):
            for items in histories(400, 18):
                answer = await ask(pipeline, items)
                if monitor.alarm:
                    break
                await until(lambda: not second_runs(pipeline))
            answer = await ask(pipeline, histories(1, 3)[0])
        assert (answer.choice.depth, answer.choice.reason) == (16, DepthReason.FALLBACK)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "no longer fits" in caplog.text
        count = monitor.evidence.count
        await ask(pipeline, histories(1, 18)[0])
        assert monitor.evidence.count == count


async def fallen_back(pipeline: Pipeline, asked: Iterator[np.ndarray]) -> Any:
    """Ask until the alarm is raised; the monitor."""
    monitor = pipeline.chooser.policy(CLOUD).monitor
    while not monitor.alarm:
        await ask(pipeline, next(asked))
        await until(lambda: not second_runs(pipeline))
    return monitor


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt to certify again takes less evidence than it would."""
    monkeypatch.setattr("fathom.selector.recertification.FIRST_ATTEMPT", 100)


@pytest.mark.usefixtures("soon")
async def test_after_the_alarm_another_routing_is_certified_from_runs_at_every_depth(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    depths: list[int] = []
    asked = iter(histories(2000, 18))
    async with running(
        bundle, feedback_share=1.0, recertify="auto", on_run=lambda _, depth: depths.append(depth)
    ) as pipeline:
        monitor = await fallen_back(pipeline, asked)
        await until(lambda: pipeline._batcher.running == 0)
        depths.clear()
        answer = await ask(pipeline, next(asked))
        assert (answer.choice.depth, answer.choice.reason) == (16, DepthReason.FALLBACK)
        await until(lambda: monitor.recertification.gathered == 1)
        assert sorted(depths) == [4, 8, 12, 16]
        with caplog.at_level(logging.WARNING, logger="fathom.runtime"):
            while monitor.alarm:
                await ask(pipeline, next(asked))
                await until(lambda: not second_runs(pipeline) and pipeline._batcher.running == 0)
        assert "certified again, on agreement" in caplog.text
        assert (monitor.recertification.attempts, monitor.recertification.succeeded) == (1, 1)
        found = [(await ask(pipeline, items)).choice for items in histories(200, 18)]
        assert {each.reason for each in found} == {DepthReason.CERTIFIED}
        assert all("as certified again: " in each.why for each in found)
        share = sum(each.depth == 16 for each in found) / len(found)
        assert abs(share - monitor.routing.shares[-1]) < 0.15
        assert pipeline.chooser.policy(CLOUD).words(CLOUD).startswith("certified again: ")


async def test_an_alarm_stays_where_nobody_wants_it_otherwise(bundle: Bundle) -> None:
    asked = iter(histories(2000, 18))
    async with running(bundle, feedback_share=1.0) as pipeline:
        await fallen_back(pipeline, asked)
        for _ in range(10):
            await ask(pipeline, next(asked))
        assert not second_runs(pipeline)


async def test_the_same_history_again_and_again_is_evidence_once(bundle: Bundle) -> None:
    shallow = next(items for items in histories(50, 18) if coin(items) < 0.75)
    async with running(bundle, feedback_share=1.0) as pipeline:
        for _ in range(100):
            await ask(pipeline, shallow)
        monitor = pipeline.chooser.policy(CLOUD).monitor
        await until(lambda: monitor.evidence.count == 1)
        assert not second_runs(pipeline)


async def test_a_depth_that_the_deadline_has_lowered_says_nothing_against_the_certificate(bundle: Bundle) -> None:
    async with running(bundle, feedback_share=1.0) as pipeline:
        deep = next(items for items in histories(50, 18) if coin(items) >= 0.75)
        late = await ask(pipeline, deep, deadline_s=time.monotonic() + 0.0135)
        assert late.choice.reason is DepthReason.DEADLINE
        assert late.choice.depth < 16
        assert not second_runs(pipeline)
        assert pipeline.chooser.policy(CLOUD).monitor.evidence.count == 0


async def test_an_error_in_what_is_made_of_a_second_run_does_not_end_feedback(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = [items for items in histories(50, 4) if coin(items) < 0.75]
    async with running(bundle, feedback_share=1.0) as pipeline:
        monitor = pipeline.chooser.policy(CLOUD).monitor
        with monkeypatch.context() as broken:
            broken.setattr(monitor, "add", lambda _: 1 / 0)
            await ask(pipeline, shallow[0])
            await until(lambda: "feedback goes on" in caplog.text)
        await ask(pipeline, shallow[1])
        await until(lambda: monitor.evidence.count == 1)


async def test_answers_by_counting_are_compared_too(bundle: Bundle) -> None:
    assert bundle.certificate is not None
    depths = (0, *DEPTHS)
    routing = Mixture("mixture", depths, (0.5, 0.5, 0.0, 0.0, 0.0))
    claim = replace(bundle.certificate.claims[0], depths=depths, routing=routing)
    costs = {0: 0.1} | bundle.certificate.costs_ms
    counted = replace(bundle, certificate=replace(bundle.certificate, claims=(claim,), costs_ms=costs))
    runs: list[int] = []
    async with running(
        counted, feedback_share=1.0, recertify="auto", on_run=lambda _, depth: runs.append(depth)
    ) as pipeline:
        monitor = pipeline.chooser.policy(CLOUD).monitor
        items = next(items for items in histories(50, 18) if coin(items) < 0.5)
        runs.clear()
        answer = await ask(pipeline, items)
        assert answer.choice.depth == 0
        await until(lambda: monitor.evidence.count == 1)
        assert runs == [16]
        # Counting gives other items than the network does.
        assert monitor.evidence.mean < 0.9
        asked = iter(histories(2000, 18))
        await fallen_back(pipeline, asked)
        await ask(pipeline, next(asked))
        await until(lambda: monitor.recertification.gathered == 1)
        [agreements] = monitor.recertification._agreements
        assert len(agreements) == len(DEPTHS)
        assert agreements[0] < 0.9


async def test_live_requests_are_compared_with_the_training_data(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(bundle, feedback_share=1.0) as pipeline:
        for items in histories(100, 18):
            await ask(pipeline, items, depth=4)
        assert pipeline.drift.samples == 0
        for items in histories(100, 18):
            await ask(pipeline, items)
            await ask(pipeline, items)
        assert pipeline.drift.samples == 100
        assert "live requests are no longer like the training data" in caplog.text
        assert "complexity" in [each.feature for each in pipeline.drift.readings if each.alarm]
    async with running(bundle, feedback_share=0.0) as pipeline:
        await ask(pipeline, ITEMS)
        assert pipeline.drift.samples == 0


async def test_second_runs_wait_until_the_engine_is_idle_and_end_with_the_pipeline(bundle: Bundle) -> None:
    depths: list[int] = []
    async with running(bundle, feedback_share=1.0, on_run=lambda _, depth: depths.append(depth)) as pipeline:
        shallow = [items for items in histories(60, 4) if coin(items) < 0.75]
        depths.clear()
        await asyncio.gather(*(ask(pipeline, items) for items in shallow))
        # One run may have slipped in before the others were all in the queue.
        assert depths.count(16) <= 1
        monitor = pipeline.chooser.policy(CLOUD).monitor
        await until(lambda: monitor.evidence.count == len(shallow))
        assert depths.count(16) == len(shallow)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_a_learned_routing_goes_online_where_the_certificate_assumed(bundle: Bundle) -> None:
    asked = histories(120, 12)
    features = np.array([bundle.inspect(items, None)[0] for items in asked])
    # Less is said to be lost where the items are popular.
    popular = features[:, Features._fields.index("popularity")]
    losses = ((popular.max() - popular) / np.ptp(popular))[:, None] * (1.0, 0.6, 0.25)
    routing = Learned("learned", DEPTHS, 0.5, (0.25, 0.5, 0.75, 1.0), LossModel.fit(features, losses))
    expected = [DEPTHS[place] for place in routing.probabilities(features).argmax(1)]
    assert bundle.certificate is not None
    claim = replace(bundle.certificate.claims[0], policy="learned", routing=routing)
    certified = replace(bundle, certificate=replace(bundle.certificate, claims=(claim,)))
    async with running(certified, feedback_share=0.0) as pipeline:
        answers = [await ask(pipeline, items) for items in asked]
    assert [answer.choice.depth for answer in answers] == expected
    assert all(each.choice.why.startswith(f"depth {each.choice.depth}, as certified") for each in answers)
    assert len(set(expected)) > 1


async def test_nothing_runs_twice_unless_it_is_asked_for(bundle: Bundle) -> None:
    async with running(bundle, feedback_share=0.0) as pipeline:
        for items in histories(50, 6):
            await ask(pipeline, items)
        await ask(pipeline, ITEMS, depth=4)
        assert not second_runs(pipeline)
    async with running(bundle, feedback_share=1.0) as pipeline:
        for items in histories(20, 6):
            await ask(pipeline, items, exclude=[3])
            await pipeline.recommend(IndexedQuery(items, k=5, profile=CLOUD))
        assert not second_runs(pipeline)
        assert pipeline.chooser.policy(CLOUD).monitor.evidence.count == 0
    for wrong in ({"feedback_share": 1.5}, {"feedback_alpha": 0.0}):
        with pytest.raises(ConfigError, match="feedback_share"):
            PipelineSettings(**wrong)
    assert bundle.certificate is not None
    claim = replace(bundle.certificate.claims[0], agreement=None)
    unwatched = replace(bundle.certificate, claims=(claim,))
    assert DepthChooser(unwatched, DEPTHS, policy="auto", alpha=0.01).policy(CLOUD).monitor is None
