"""Commands that talk to a server."""

import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.connection_options import connect
from fathom.commands.options import AsJson, BundlePath, takes
from fathom.connection import Connection
from fathom.errors import ConfigError, brief

if TYPE_CHECKING:
    from fathom.client import Reason, Recommendation, Rules

#: Of a whole number.
MOST_DIGITS = 19


@takes(connection=connect)
def reload(
    *,
    name: Annotated[str, typer.Argument(help="Only this bundle. Default: all.")] = "",
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Make a running server load the newest bundles from its folder; exit code 2 if one is refused.

    Example: fathom reload --target 127.0.0.1:50051
    """
    from fathom.client import Client

    with Client.over(connection) as client:
        reloaded = client.reload(name)
    if as_json:
        show.print_json([asdict(each) for each in reloaded])
    else:
        rows = [["bundle", "serves", "before", ""]]
        rows += [[e.bundle, e.version or "-", e.previous or "-", e.error and f"refused: {e.error}"] for e in reloaded]
        show.table(f"Bundles of {connection.target}", rows)
    if any(each.error for each in reloaded):
        raise typer.Exit(2)


@takes(connection=connect)
def recommend(
    *,
    items: Annotated[str, typer.Option(help="Item ids separated by commas, oldest first.")] = "",
    timestamps: Annotated[str, typer.Option(help="Seconds since 1970 of each item, separated by commas.")] = "",
    request_time: Annotated[
        int,
        typer.Option(min=0, help="Seconds since 1970 at which the answer is shown. Default: now.", show_default=False),
    ] = 0,
    context: Annotated[
        list[str] | None,
        typer.Option(help="Where or how the answer is shown, FEATURE=VALUE, as country=DE. Repeatable."),
    ] = None,
    user: Annotated[str, typer.Option(help="A user whose history the server keeps, instead of --items.")] = "",
    session: Annotated[str, typer.Option(help="A visit of somebody without an id, for experiments.")] = "",
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    profile: Annotated[str, typer.Option(help="A device profile or tier. Default: the server's.")] = "",
    depth: Annotated[int | None, typer.Option(help="Run exactly this depth; 0 is the counting exit.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only items of this category. Repeatable.")] = None,
    exclude: Annotated[str, typer.Option(help="Item ids never to return, separated by commas.")] = "",
    seen_type: Annotated[
        list[str] | None, typer.Option(help="Leave out only items of events of this type. Repeatable.")
    ] = None,
    block: Annotated[
        list[str] | None, typer.Option(help="Leave out a list of the server's rules, by its name. Repeatable.")
    ] = None,
    cap: Annotated[
        list[str] | None,
        typer.Option(help="At most N items of a category, CATEGORY=N, or of every one, N. Repeatable."),
    ] = None,
    diversity: Annotated[
        float | None, typer.Option(min=0, max=1, help="0: the best items; up to 1: ever less like each other.")
    ] = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="Say which items of the history each is due to.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where no item is known; else popular items.")] = False,
    bundle: Annotated[str, typer.Option(help="Which of the server's bundles. Default: the server's default.")] = "",
    timeout_ms: Annotated[float, typer.Option(min=1, help="Deadline of the request.")] = 5000.0,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Ask a running server: items with titles and scores, the depth, the reason, and where the time went.

    Example: fathom recommend --items 50,172,181 -k 5 --profile edge
    """
    from fathom.client import Client

    with Client.over(connection) as client:
        answer = client.recommend(
            _ids(items),
            timestamps=_seconds(timestamps),
            request_time=request_time,
            context=_context(context or ()),
            user_id=user,
            session_id=session,
            bundle=bundle,
            k=k,
            profile=profile,
            depth=depth,
            categories=category or (),
            exclude=_ids(exclude),
            seen_types=seen_type or (),
            block_lists=block or (),
            rules=_rules(cap or (), diversity),
            reasons=reasons,
            strict=strict,
            timeout_s=timeout_ms / 1000,
        )
    show.result(asdict(answer), as_json, show_answer, answer)


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seconds(text: str) -> list[int]:
    given = _ids(text)
    for each in given:
        if not _is_whole(each):
            raise ConfigError(f"--timestamps {brief(each)}: give whole seconds since 1970, one per item")
    return [int(each) for each in given]


def _context(given: Iterable[str]) -> dict[str, str] | None:
    """Feature -> value; None where none is given."""
    found: dict[str, str] = {}
    for each in given:
        feature, equals, value = each.partition("=")
        if not equals or not feature.strip():
            raise ConfigError(f"--context {brief(each)}: give FEATURE=VALUE, as country=DE")
        if feature.strip() in found:
            raise ConfigError(f"--context names {brief(feature.strip())} twice; give it once")
        found[feature.strip()] = value.strip()
    return found or None


def _is_whole(text: str) -> bool:
    """Whether it is a whole number; Python reads none of thousands of digits."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def _rules(caps: Iterable[str], diversity: float | None) -> "Rules | None":
    """The rules that options ask for; None: the server's own."""
    from fathom.client import Rules

    if not caps and diversity is None:
        return None
    most: dict[str, int] = {}
    for cap in caps:
        category, _, number = cap.rpartition("=")
        if not _is_whole(number):
            raise ConfigError(f"--cap {brief(cap)}: give CATEGORY=N, as Drama=2, or N alone for every category")
        most[category.strip()] = int(number)
    return Rules(caps=most, diversity=diversity or 0.0)


def _because(reason: "Reason") -> str:
    amount = f"{reason.amount:.0%} of the count" if reason.source == "counting" else f"{reason.amount:.4f} of the score"
    return f"{reason.item_id} ({amount})"


def show_answer(answer: "Recommendation", *more: tuple[str, str]) -> None:
    """Print one answer, and more names and values below it."""
    rows = [["title", "id", "score"], *([item.title or "-", item.id, f"{item.score:.4f}"] for item in answer.items)]
    if any(item.reasons for item in answer.items):
        cells = ["because of", *(", ".join(map(_because, item.reasons)) or "-" for item in answer.items)]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    # Many reasons name the depth first.
    named = re.match(rf"depth {answer.depth}\b", answer.why)
    show.table(answer.why if named else f"depth {answer.depth}: {answer.why}", rows)
    t = answer.timings
    used = f"{answer.history_used} items of the history used, {answer.unknown_items} unknown"
    stages = f"select {t.select_us}, queue {t.queue_us}, engine {t.engine_us}, retrieval {t.retrieval_us}"
    # Where callers are known, timings are for admins.
    spent = [("server time", f"{t.total_us} µs ({stages})")] if t.total_us else []
    show.facts("", [*spent, ("history", used), *more])


def demo(
    bundle: BundlePath,
    data: Annotated[Path | None, typer.Option(help="Dataset with real histories. Default: beside the bundle.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Users to ask for.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Start a server, ask it for real users under the three tiers, and show the live answers.

    Example: fathom demo build/ml-100k/bundle
    """
    from fathom.tools.demo import ask

    answers = ask(bundle, data or bundle.parent / "dataset", users)
    if as_json:
        show.print_json([asdict(answer) for answer in answers])
        return
    for answer in answers:
        show.out.rule(f"a user with {answer.history} items, asked as {answer.tier}", align="left")
        show_answer(answer.answer, ("round trip", f"{answer.round_trip_ms:.2f} ms over gRPC"))


@takes(connection=connect)
def loadtest(
    *,
    trace: Annotated[Path, typer.Option(help="A trace, or a dataset folder to make one from.")],
    rate: Annotated[float, typer.Option(help="Mean requests per second of a made trace.")] = 50.0,
    duration: Annotated[float, typer.Option(help="Seconds of a made trace.")] = 30.0,
    kind: Annotated[Literal["poisson", "bursty"], typer.Option(help="Arrivals of a made trace.")] = "poisson",
    seed: Annotated[int, typer.Option(help="Seed of a made trace.")] = 0,
    profile: Annotated[list[str] | None, typer.Option(help="Profiles to mix in a made trace. Repeatable.")] = None,
    deadline_ms: Annotated[float, typer.Option(help="Deadline of each request.")] = 1000.0,
    bundle: Annotated[str, typer.Option(help="Which of the server's bundles. Default: the server's default.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON, and a plot beside it.")] = None,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Replay an arrival trace in an open loop; latency counts from the intended send time.

    Example: fathom loadtest --trace build/ml-100k/dataset --rate 200 --duration 10 --out load.json
    """
    from fathom.loadtests.replay import replay
    from fathom.loadtests.traces import Trace, make_trace, read_histories

    check_outputs((out, artefacts.LOAD_REPORT), inputs=[trace])
    if trace.is_dir():
        histories = read_histories(trace, seed=seed)
        made = make_trace(
            histories, kind=kind, rate_per_s=rate, duration_s=duration, seed=seed, profiles=profile or [""]
        )
    else:
        made = Trace.load(trace)
    report = replay(connection, made, bundle=bundle, deadline_ms=deadline_ms)
    if out:
        report.save(out)
    show.result(report.as_dict(), as_json, show.out.print, report.table())
