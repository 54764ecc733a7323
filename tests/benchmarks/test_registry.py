"""One command lists, runs and shows every benchmark."""

import argparse
import asyncio
from pathlib import Path

import pytest

from fathom.benchmarks import registry
from fathom.benchmarks.__main__ import listing, main
from fathom.benchmarks.load import closed_loop, open_loop


def test_every_benchmark_says_what_it_measures_and_costs_and_has_nothing_to_show_of_an_empty_folder(
    tmp_path: Path,
) -> None:
    for name in registry.names():
        benchmark = registry.load(name)
        assert benchmark.summary
        assert benchmark.cost
        assert benchmark.section(tmp_path) == ""
    assert len(listing().splitlines()) == 2 + len(registry.names())


def test_every_stored_run_is_in_a_place_that_one_benchmark_names() -> None:
    places = [place for name in registry.names() for place in registry.load(name).stored]
    assert len(set(places)) == len(places)
    results = Path(__file__).parents[2] / "results"
    for path in results.rglob("*.json"):
        name = path.relative_to(results).as_posix()
        assert name in places or f"{name.partition('/')[0]}/" in places, name


@pytest.mark.parametrize("name", registry.names())
def test_the_help_of_every_benchmark_can_be_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", name, "--help"])
    assert end.value.code == 0
    assert "--results" in capsys.readouterr().out


def test_an_unknown_benchmark_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "nothing"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: no benchmark is called nothing; there are ")


async def test_an_open_loop_does_not_wait_for_answers_and_a_closed_one_does() -> None:
    running, most, sent = 0, 0, []

    async def call(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        sent.append(number)

    await open_loop(lambda number, _: call(number), 5_000, count=100)
    assert sorted(sent) == list(range(100))
    assert most > 10
    most = 0
    assert await closed_loop(call, 4, 20) > 0
    assert most == 4


@pytest.mark.parametrize(
    "name", [name for name in registry.names() if {"bundle", "bundles"} & registry.load(name).arguments.keys()]
)
def test_a_benchmark_ends_in_one_line_and_stores_nothing_when_the_bundle_is_not_there(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing, arguments = str(tmp_path / "nowhere"), registry.load(name).arguments
    bundles = [missing] * (2 if "bundles" in arguments else 1)
    data = ["--data", missing] if "--data" in arguments else []
    with pytest.raises(SystemExit) as end:
        main(["run", name, *bundles, *data, "--results", str(tmp_path / "results")])
    assert end.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "results").exists()


def test_an_option_that_is_repeated_adds_to_what_was_given() -> None:
    parser = argparse.ArgumentParser()
    registry.add_arguments(parser, registry.load("quality"))
    options = parser.parse_args(["ml-100k", "--set", "a=1", "--set", "b=2", "c=3", "--seeds", "1", "2"])
    assert options.set == ["a=1", "b=2", "c=3"]
    assert options.seeds == [1, 2]
