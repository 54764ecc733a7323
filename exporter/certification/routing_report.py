"""The report of a certification: what routing gains over static depths, as JSON, a picture and one page."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fathom.artefacts import REPORT_FOLDER, ROUTING_PAGE, ROUTING_PLOT, check_output
from fathom.errors import DataError, MissingExtraError
from fathom.exporter.bundle.teachers import are_teachers
from fathom.exporter.certification.certify import CertificationData
from fathom.exporter.certification.hull import hull
from fathom.exporter.certification.outcomes import Costs, Outcomes, distinct
from fathom.exporter.certification.routing_curves import (
    Policy,
    PolicyResult,
    curve_of,
    evaluate_policy,
    explained,
    feature_correlations,
    hindsight,
    policies,
    static_curve,
)
from fathom.exporter.certification.routing_table import percent, promise_words
from fathom.files import write_bytes, write_json
from fathom.importance.report.html import document
from fathom.selector.certificate import Certificate, Claim, Kind
from fathom.selector.complexity import ReliabilityPoint, reliability
from fathom.selector.schema import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA_VERSION = 2
#: NDCG@10 that an axis spans at least: differences that are smaller are nothing to look at.
LEAST_RANGE = 1e-3
#: Lengths of lists that answers are compared by.
TOPS = (1, 5, 10)
#: Characters of the bundle's name that the picture shows.
LONGEST_NAME = 80
COLOURS = {"length": "#c24e00", "learned": "#0072b2", "hindsight": "#92a5b4"}
WHAT = {
    "length": "as learned, but as if all requests lost as much: the length decides by what it costs",
    "learned": "the least expected loss of agreement + price x cost, learned from the features",
    "hindsight": "knows the answer; no policy can reach it",
}
SAME_CASE = "test users with the history and next item of another, left out of the counts above"


@dataclass(frozen=True)
class RoutingReport:
    """Policies on the test cases of users that nothing was learned from; costs in milliseconds of a request alone.

    ``static``, ``hull`` and ``policies``: by NDCG@10. ``agreement``: the same policies by the share of the deepest
    depth's top 10. ``alike``: how like the deepest depth's answers each depth's are, by measure. ``reliability``: the
    shallowest depth's disagreement as complexity predicts it and as it is, of groups of requests.
    """

    name: str
    depths: tuple[int, ...]
    users: int
    static: list[tuple[float, float]]
    hull: list[tuple[float, float]]
    policies: list[PolicyResult]
    features: Mapping[str, tuple[float, float, float]]
    explained: float
    agreement: list[PolicyResult]
    alike: Mapping[str, list[float]]
    reliability: tuple[ReliabilityPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def make_report(name: str, measured: CertificationData, *, seed: int = 0) -> RoutingReport:
    """Judge every policy, on each case once: copies of users would make every interval too narrow.

    Raises DataError where nobody is left to judge, or too few to learn from.
    """
    known, costs, test = measured.learning, measured.costs, judges(measured)
    cost, quality = costs.of(test.lengths).mean(0), test.quality.mean(0)
    tried = policies(known, test, costs)
    return RoutingReport(
        name=name,
        depths=test.depths,
        users=len(test),
        static=_pairs(cost, quality),
        hull=_pairs(*hull(cost, quality)),
        policies=judge(tried, test.quality, test, costs, seed=seed),
        features=feature_correlations(test),
        explained=explained(known),
        agreement=judge(tried, test.agreement, test, costs, seed=seed),
        alike={
            **{f"top {k}": _rounded(test.agreement_at(k).mean(0)) for k in TOPS},
            "rank-biased overlap": _rounded(test.overlap.mean(0)),
            **({} if test.denoised is None else {"expected NDCG@10": _rounded(test.denoised.mean(0))}),
        },
        reliability=reliability(test.complexity, 1 - test.at_depths(test.network_depths).agreement[:, 0]),
    )


def judges(measured: CertificationData) -> Outcomes:
    """The test cases of users that nothing was learned from, each once; raises DataError where there are none."""
    found = distinct(measured.test.select(~are_teachers(measured.test.digests)))
    if not len(found):
        raise DataError("nobody is left to judge what was learned; more users are needed")
    return found


def judge(
    tried: Sequence[Policy], value: Floats, judged: Outcomes, costs: Costs, *, seed: int = 0
) -> list[PolicyResult]:
    """Each policy, and hindsight, by what every depth gives every request, ``value`` (n, D)."""
    static, every = static_curve(value, judged, costs), [*tried, hindsight(value, judged, costs)]
    return [evaluate_policy(curve_of(policy, value, judged, costs), static, seed=seed) for policy in every]


def write_report(report: RoutingReport, certificate: Certificate, folder: Path) -> None:
    """Write routing.json, routing.png and routing.html into a folder; what else is in it stays."""
    check_output(folder, REPORT_FOLDER)
    picture = plot(report)
    write_json(folder / "routing.json", report.as_dict())
    write_bytes(folder / "routing.png", picture)
    write_bytes(folder / "routing.html", page(report, certificate, picture).encode())


def plot(report: RoutingReport) -> bytes:
    """Quality against cost, and how far each policy lies above the hull, as PNG."""
    buffer = BytesIO()
    draw(report).savefig(buffer, format="png", dpi=150, metadata={"Software": ROUTING_PLOT.mark})
    return buffer.getvalue()


def draw(report: RoutingReport) -> "Figure":
    """The picture of ``plot``; raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "train") from None
    figure = Figure(figsize=(11, 5), facecolor="white", layout="constrained")
    name = report.name if len(report.name) <= LONGEST_NAME else f"{report.name[:LONGEST_NAME]}..."
    figure.suptitle(name, x=0.01, ha="left", fontsize=12)
    curves, areas = figure.subplots(1, 2, width_ratios=(3, 2))
    _curves(curves, report)
    _areas(areas, report)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _curves(axes: "Axes", report: RoutingReport) -> None:
    for policy in report.policies:
        if policy.name != "hindsight":
            x, y = zip(*sorted(policy.points), strict=True)
            axes.plot(x, y, color=COLOURS[policy.name], linewidth=1.5, label=policy.name)
    x, y = zip(*report.hull, strict=True)
    axes.plot(x, y, color="#14202b", linewidth=1, linestyle="--", label="hull of static depths")
    for depth, (cost, quality) in zip(report.depths, report.static, strict=True):
        # The depth stands inside its mark, where no line can run through it.
        axes.plot(cost, quality, "o", color="#14202b", markersize=15, zorder=3)
        axes.annotate(str(depth), (cost, quality), color="white", fontsize=8, ha="center", va="center", zorder=4)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(1.2 * (high - low), LEAST_RANGE) / 2
    axes.set_ylim(middle - half, middle + half)
    axes.margins(x=0.06)
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel("milliseconds per request")
    axes.set_ylabel("NDCG@10")
    axes.set_title("Quality against measured cost", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _areas(axes: "Axes", report: RoutingReport) -> None:
    shown = [policy for policy in report.policies if policy.name != "hindsight"]
    for place, policy in enumerate(reversed(shown)):
        axes.plot([1e3 * policy.low, 1e3 * policy.high], [place, place], color=COLOURS[policy.name], linewidth=3)
        axes.plot(1e3 * policy.area, place, "o", color=COLOURS[policy.name], markersize=8)
    axes.axvline(0, color="#14202b", linewidth=1, linestyle="--")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1e3 * LEAST_RANGE / 2), max(high, 1e3 * LEAST_RANGE / 2))
    axes.locator_params(axis="x", nbins=6)
    axes.set_yticks(range(len(shown)), [policy.name for policy in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("NDCG@10 above the hull, thousandths")
    axes.set_title("What knowing the request is worth [95 %]", loc="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)


def page(report: RoutingReport, certificate: Certificate, picture: bytes) -> str:
    """One HTML file that needs nothing else."""
    title = f"Routing of {report.name}"
    main = f"""<h1>{escape(title)}</h1>
<p>{_verdict(report)}</p>
{"".join(_certified(certificate, kind) for kind in certificate.promises)}<h2>Policies against random mixing</h2>
<img src="data:image/png;base64,{b64encode(picture).decode()}" alt="Quality against cost of every policy">
{_policies(report)}{_alike(report)}{_reliability(report)}{_features(report)}"""
    style = " img { max-width: 100%; background: white; border-radius: 6px; }"
    return document(title, ROUTING_PAGE.mark, main, style=style, images=True)


def _certified(certificate: Certificate, kind: Kind) -> str:
    promise = certificate.promises[kind]
    claims = "".join(_claim_row(claim) for claim in certificate.of(kind))
    merged = f"<p>{promise.merged:,} {SAME_CASE}.</p>\n" if promise.merged else ""
    return f"""<h2>Certificate: {escape(promise_words(kind, promise))}</h2>
<p>Each routing below keeps that much; the probability that any of this is wrong is at most
{percent(promise.delta)}. The figures for {kind} and compute are estimates.</p>
<div class=wide tabindex=0><table class=plain><thead><tr><th>depths</th><th>routing</th><th>users</th>
<th>{kind} kept</th><th>compute saved</th></tr></thead><tbody>{claims}</tbody></table></div>
{merged}"""


def _policies(report: RoutingReport) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(each.name)}</th><td>{_area_cell(alike)}</td><td>{_area_cell(each)}</td>"
        f"<td style='text-align:left'>{escape(WHAT[each.name])}</td></tr>"
        for each, alike in zip(report.policies, report.agreement, strict=True)
    )
    return f"""\
<p>Answering each request at a depth chosen at random reaches every point on the dashed line, the convex hull of the
static depths. Area: by how much a policy lies above that line on average, in agreement (the share of the deepest
depth's top 10) and in NDCG@10, for {report.users:,} test users. What is learned is learned from the agreement of other
users' requests.</p>
<div class=wide tabindex=0><table class=plain><thead><tr><th>policy</th><th>area, agreement [95 %]</th>
<th>area, NDCG@10 [95 %]</th><th style="text-align:left">what it does</th></tr></thead>
<tbody>{rows}</tbody></table></div>
"""


def _area_cell(each: PolicyResult) -> str:
    return f"{each.area:+.5f} [{each.low:+.5f}, {each.high:+.5f}]"


def _alike(report: RoutingReport) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in report.alike)
    rows = "".join(
        f"<tr><th scope=row>{depth}</th>"
        + "".join(f"<td>{column[place]:.3f}</td>" for column in report.alike.values())
        + "</tr>"
        for place, depth in enumerate(report.depths)
    )
    return f"""<h2>How like depth {report.depths[-1]}'s answers those of each depth are</h2>
<p>The share of its best items that a depth gives too; rank-biased overlap (p = 0.9), where the first places count most;
and the NDCG@10 that the deepest depth expects of each depth's items, by its own softmax.</p>
<div class=wide tabindex=0><table class=plain><thead><tr><th>depth</th>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>
"""


def _reliability(report: RoutingReport) -> str:
    rows = "".join(
        f"<tr><th scope=row>{each.requests:,}</th><td>{each.predicted:.3f}</td><td>{each.observed:.3f}</td></tr>"
        for each in report.reliability
    )
    return f"""<h2>Does complexity mean what it says?</h2>
<p>Complexity is the predicted share of the deepest depth's top 10 that the shallowest depth of the network does not
give. Groups of requests by their complexity: means as predicted, and as they are.</p>
<div class=wide tabindex=0><table class=plain><thead><tr><th>requests</th><th>complexity</th><th>disagreement</th></tr>
</thead><tbody>{rows}</tbody></table></div>
"""


def _features(report: RoutingReport) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{r:+.3f} [{low:+.3f}, {high:+.3f}]</td></tr>"
        for name, (r, low, high) in report.features.items()
    )
    return f"""<h2>Which features predict what the shallowest depth gets wrong</h2>
<p>Correlation of each feature with the share of depth {report.depths[-1]}'s top 10 that depth {report.depths[0]} does
not give. All features together explain {report.explained:+.4f} of its variance (cross-fitted R&sup2;; below zero means
that a constant predicts better).</p>
<div class=wide tabindex=0><table class=plain><thead><tr><th>feature</th><th>r [95 %]</th></tr></thead>
<tbody>{rows}</tbody></table></div>
"""


def _verdict(report: RoutingReport) -> str:
    measures = {"agreement with the deepest depth": report.agreement, "NDCG@10": report.policies}
    shown = {name: [p.name for p in found if p.name != "hindsight" and p.low > 0] for name, found in measures.items()}
    said = [f"in {name}: {escape(', '.join(above))}" for name, above in shown.items() if above]
    if said:
        return f"Shown to beat choosing depths at random {'; '.join(said)}."
    return (
        "No policy is shown to beat choosing depths at random: on these data, which request needs more depth cannot be"
        " told from the request."
    )


def _claim_row(claim: Claim) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in _claim_cells(claim))
    return f"<tr><th scope=row>{', '.join(map(str, claim.depths))}</th>{cells}</tr>"


def _claim_cells(claim: Claim) -> list[str]:
    """The routing and its users, quality kept and compute saved; where there is none, why, and the users."""
    users = f"{claim.users:,}"
    if claim.routing is None or claim.kept is None or claim.saved is None:
        return [not_certified(claim), users]
    return [claim.routing.words, users, f"{claim.kept:.1%}", f"{claim.saved:.1%}"]


def not_certified(claim: Claim) -> str:
    """Why, in a few words."""
    if claim.needed is None:
        return "not certified: the first steps down lose too much here, or save nothing"
    return f"not certified: about {claim.needed:,} different users are needed, there are {claim.users:,}"


def what_is_needed(certificate: Certificate) -> str:
    """What would certify the claim that is nearest to it."""
    missing = [claim for claim in certificate.claims if claim.needed is not None]
    if not missing:
        return "the first steps below the deepest depth lose too much, or save nothing; allow a larger --eps"
    claim = min(missing, key=lambda claim: claim.needed or 0)
    fewer = "name fewer profiles, " if len(certificate.claims) > 1 else ""
    return (
        f"depths {', '.join(map(str, claim.depths))} need about {claim.needed:,} different test users and there are"
        f" {claim.users:,}; add users, {fewer}or allow a larger --eps"
    )


def certificate_rows(certificate: Certificate, kind: Kind) -> list[list[str]]:
    """A row of text per claim of a kind, the header first; the users who were copies of others come last."""
    rows = [["depths", "routing", "users", f"{kind} kept", "compute saved"]]
    for claim in certificate.of(kind):
        cells = [" ".join(map(str, claim.depths)), *_claim_cells(claim)]
        rows.append(cells + [""] * (len(rows[0]) - len(cells)))
    if merged := certificate.promises[kind].merged:
        rows.append(["merged", SAME_CASE, f"{merged:,}", "", ""])
    return rows


def bucket_rows(claim: Claim, eps: float) -> list[list[str]]:
    """A row of text per bucket, the header first."""
    rows = [["users with", "users", "kept", "at least", f"loss below {percent(eps)}"]]
    for each in claim.buckets:
        shown = "shown" if each.low >= 1 - eps else "not shown"
        rows.append([each.name, f"{each.users:,}", f"{each.kept:.1%}", f"{each.low:.1%}", shown])
    return rows


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 6) for value in values]


def _pairs(cost: Sequence[float] | np.ndarray, quality: Sequence[float] | np.ndarray) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(cost, quality, strict=True)]
