"""What locust's report does not say by itself: that it is of a closed loop, what was spoken to, and each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fathom.loadtests.steps import StepResult, table_of

ID = "fathom-closed-loop"
#: Once in a report, between the head, which holds all scripts, and the page that they build.
PLACE = '<div id="root">'

STYLE = f"""<style>
#{ID} {{ font: 16px/1.5 sans-serif; color: #1a1a1a; background: #fff8e1; border-bottom: 3px solid #b26a00;
  padding: 16px 24px; }}
#{ID} h2 {{ margin: 0 0 8px; font-size: 20px; }}
#{ID} p {{ margin: 8px 0; max-width: 110ch; }}
#{ID} table {{ border-collapse: collapse; margin: 8px 0; }}
#{ID} th, #{ID} td {{ padding: 2px 14px; text-align: right; border-bottom: 1px solid #d9c9a0; }}
#{ID} td div {{ height: 14px; background: #b26a00; }}
#{ID} td.bar {{ width: 240px; }}
</style>"""


@dataclass(frozen=True)
class Told:
    """What a run's note tells; ``bundle`` and ``transport`` are empty where the server does not say."""

    target: str
    bundle: str
    transport: str
    think_ms: float
    user_classes: Sequence[str]
    steps: Sequence[StepResult] = ()


def with_note(report: str, told: Told) -> str:
    """Locust's report (HTML) with the note above it; a report that has one, or is none, stays as it is."""
    if f'id="{ID}"' in report or report.count(PLACE) != 1:
        return report
    return report.replace(PLACE, f"{note_of(told)}\n    {PLACE}")


def note_of(told: Told) -> str:
    """The note (HTML)."""
    thinks = f", thinks for {told.think_ms:g} ms on average" if told.think_ms > 0 else ""
    served = f"bundle {told.bundle}" if told.bundle else "a bundle that it does not name"
    transport = f"transport {told.transport}" if told.transport else "a transport that it does not name"
    server = f"Target {told.target}: {served}, {transport}. Users: {', '.join(told.user_classes)}."
    return f"""{STYLE}
<section id="{ID}">
<h2>Locust is a closed loop</h2>
<p>Each user waits for an answer{thinks}, and only then sends the next request. A slow server is therefore offered less
load, and the times below lack the requests that would have come meanwhile (coordinated omission). They tell how long
answers take with so many users, not with so many requests a second: for that, use <code>fathom loadtest</code>, an open
loop, which sends requests on schedule however slow the answers are.</p>
<p>{escape(server)}</p>
<p>Requests of type gRPC are calls. Those of type answer and first answer are parts of a call that has many answers; the
totals and charts below count them too.</p>
{_table(told.steps) if told.steps else ""}</section>"""


def _table(steps: Sequence[StepResult]) -> str:
    head, *rows = table_of(steps)
    most = max(each.calls_per_s for each in steps) or 1.0
    bars = [f'<td class="bar"><div style="width:{100 * each.calls_per_s / most:.0f}%"></div></td>' for each in steps]
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in [*head, ""])]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) + bar for row, bar in zip(rows, bars, strict=True)]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"""<p>Each step, from when all of its users were there until it ended. Where calls/s (the bars) stop
growing, further users only wait longer: the server, or the machine that runs locust, can do no more.</p>
<table>
{body}</table>
"""
