"""Runs benchmarks, and shows what they have stored.

python -m fathom.benchmarks list
python -m fathom.benchmarks run NAME --help
python -m fathom.benchmarks section NAME
"""

import argparse
import sys
from pathlib import Path

from fathom.benchmarks import registry
from fathom.benchmarks.markdown import table
from fathom.benchmarks.record import RESULTS, save_run
from fathom.errors import FathomError


def main(arguments: list[str] | None = None) -> None:
    """The command; what a user gets wrong ends it with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m fathom.benchmarks", description="Measures Fathom.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all benchmarks, what each measures and costs")
    for command, text in (("run", "measure, store, show"), ("section", "show what is stored, as docs/results.md does")):
        added = commands.add_parser(command, help=text, add_help=command != "run")
        added.add_argument("name", help="as `list` shows it")
        if command == "section":
            added.add_argument("--results", type=Path, default=RESULTS)
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if chosen.command == "list":
            print(listing())
        elif chosen.command == "run":
            _run(chosen.name, rest)
        else:
            print(registry.load(chosen.name).section(chosen.results))
    except FathomError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def listing() -> str:
    """A Markdown table of all benchmarks."""
    rows = [(name, registry.load(name)) for name in registry.names()]
    return table(
        ["benchmark", "measures", "costs", "stored in `results/`"],
        [
            [f"`{name}`", each.summary, each.cost, ", ".join(f"`{place}`" for place in each.stored)]
            for name, each in rows
        ],
    )


def _run(name: str, arguments: list[str]) -> None:
    benchmark = registry.load(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m fathom.benchmarks run {name}",
        description=benchmark.about,
        epilog=f"Takes {benchmark.cost}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    registry.add_arguments(parser, benchmark)
    options = parser.parse_args(arguments)
    for each in benchmark.measure(options):
        path = save_run(
            each.name or name, config=each.config, result=each.result, seed=each.seed, folder=options.results
        )
        print(f"stored in {path}", flush=True)
    print(benchmark.section(options.results))


if __name__ == "__main__":
    main()
