"""From a checkpoint to a bundle, and the certificate of its routing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.bundle import show_bundle
from fathom.commands.options import AsJson, Data, Out, need_training
from fathom.errors import ConfigError, DataError
from fathom.show import Activity

if TYPE_CHECKING:
    from fathom.exporter.engines.precision import Bits
    from fathom.selector.certificate import Certificate
    from fathom.training.checkpoint import Checkpoint


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder; healed, where a plan is given.")],
    data: Data,
    out: Out,
    plan: Annotated[Path | None, typer.Argument(help="Refuse a checkpoint that was not healed for this plan.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the data set's.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4", "mixed"] | None,
        typer.Option(help="Of the engines. Default: the profile's, else fp32."),
    ] = None,
    item_precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="Of the item vectors: half or a quarter of their memory.")
    ] = "fp32",
    profile: Annotated[str | None, typer.Option(help="Take precision and allowed loss from a profile or tier.")] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of NDCG@10 it may cost. Default: the profile's, else 0.01."),
    ] = None,
    ranking: Annotated[Path | None, typer.Option(help="For mixed: the more important a layer, the more bits.")] = None,
    budget_mb: Annotated[
        float | None, typer.Option(min=0, help="For mixed: what all layers' weights may take.")
    ] = None,
    every_length: Annotated[
        bool, typer.Option("--every-length", help="Check parity with torch at every history length.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a bundle: early-exit engines checked against torch, item index, selector, manifest.

    In fewer bits than fp32, the quality is measured too, and an export that loses too much is refused.

    Example: fathom export build/ml-100k/healed/prefix --data build/ml-100k/dataset --out small --precision int8
    """
    need_training()
    from fathom.edge_profiles.profile import load_profile
    from fathom.exporter.bundle.export import export as run
    from fathom.exporter.engines.reduced_quality import MAX_LOSS
    from fathom.exporter.planning.plan import DepthPlan
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset

    check_outputs((out, artefacts.BUNDLE), inputs=[checkpoint, data, plan, ranking])
    dataset, loaded = Dataset.load(data), Checkpoint.load(checkpoint)
    device = load_profile(profile) if profile else None
    chosen = precision or (device.precision if device else "fp32")
    bits = _mixed_bits(loaded, ranking, budget_mb) if chosen == "mixed" else None
    if max_loss is None:
        max_loss = device.max_loss if device else MAX_LOSS
    with Activity("export") as activity:
        manifest = run(
            loaded,
            dataset,
            out,
            name=name or str(dataset.meta["name"]),
            plan=DepthPlan.load(plan) if plan else None,
            precision=chosen,
            layer_bits=bits,
            item_precision=item_precision,
            max_loss=max_loss,
            every_length=every_length,
            progress=activity.update,
        )
    if as_json:
        show.as_json(manifest.model_dump(mode="json"))
    else:
        show_bundle(manifest)


def _mixed_bits(checkpoint: "Checkpoint", ranking: Path | None, budget_mb: float | None) -> "dict[int, Bits]":
    from fathom.exporter.engines.precision import mixed_bits
    from fathom.importance.layer_ranking import LayerRanking

    if ranking is None or budget_mb is None:
        raise ConfigError("--precision mixed needs --ranking and --budget-mb")
    return mixed_bits(checkpoint.model, LayerRanking.load(ranking).consensus_order, budget_mb)


def certify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; the certificate is written into it.")],
    data: Data,
    eps: Annotated[
        float, typer.Option(help="The loss of NDCG@10 that is allowed, relative to the deepest depth.")
    ] = 0.05,
    delta: Annotated[float, typer.Option(help="The probability that the certificate may be wrong with.")] = 0.05,
    policy: Annotated[
        Literal["mixture", "rule", "learned", "cascade"], typer.Option(help="Family of routings.")
    ] = "mixture",
    profile: Annotated[
        list[str] | None,
        typer.Option(help="A profile's name or file, or a tier; repeatable. Default: all that come with Fathom."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report: JSON, PNG and a page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Certify the cheapest routing over depths that loses less than eps against the deepest depth.

    Tested on the data set's test items through the bundle's own engines; the server then uses it. Users with the same
    history and the same next item count as one. All claims of one certificate share delta, so name the profiles that
    matter.

    Every run is a new test that may be wrong with probability delta: decide on eps, delta, policy and profiles before
    the first run. Picking the best of n runs is wrong with probability up to n x delta.

    Where nothing can be certified the bundle is left as it is and the exit code is 2.

    Example: fathom certify build/ml-1m/bundle --data build/ml-1m/dataset --profile cloud
    """
    need_training()
    from fathom.edge_profiles.profile import load_profile, profile_names
    from fathom.exporter.certification.certify import certify as run
    from fathom.exporter.certification.certify import check_risk, measure_bundle, write_certificate
    from fathom.exporter.certification.routing_report import make_report, what_is_needed, write_report
    from fathom.runtime.bundle import Bundle
    from fathom.training.dataset import Dataset

    check_risk(eps, delta)
    check_outputs((artefacts.real(bundle), artefacts.BUNDLE), (report, artefacts.REPORT_FOLDER), inputs=[data])
    opened, dataset = Bundle.open(bundle), Dataset.load(data)
    profiles = [load_profile(name) for name in profile or profile_names()]
    served = [tuple(depth for depth in each.depths if depth in opened.depths) for each in profiles]
    depth_sets = sorted({depths for depths in served if len(depths) > 1}, key=len, reverse=True)
    if not depth_sets:
        raise ConfigError(f"{bundle}: no profile given has two of its depths; there is nothing to choose from")
    with Activity("certify") as activity:
        measured = measure_bundle(opened, dataset, progress=activity.update)
        activity.update("testing routings")
        certificate = run(opened, measured, eps=eps, delta=delta, family=policy, depth_sets=depth_sets)
        if report is not None:
            activity.update("judging every policy against static depths")
            write_report(make_report(opened.manifest.name, measured), certificate, report)
        if certificate.certified:
            write_certificate(opened, certificate)
    if as_json:
        show.as_json(certificate.to_json())
    else:
        show_certificate(certificate)
    if not certificate.certified:
        raise DataError(f"{bundle}: nothing is certified, so it is unchanged: {what_is_needed(certificate)}")


def show_certificate(certificate: "Certificate") -> None:
    """A table of the claims, and of each claim's parts of the users."""
    from fathom.exporter.certification.routing_report import bucket_rows, certificate_rows, percent

    eps, delta = certificate.eps, certificate.delta
    show.table(
        f"At least {percent(1 - eps)} of the deepest depth's NDCG@10, confidence {percent(1 - delta)}",
        certificate_rows(certificate),
    )
    for claim in certificate.claims:
        if claim.buckets:
            show.table(
                f"Depths {', '.join(map(str, claim.depths))}: bounds that hold together", bucket_rows(claim, eps)
            )
