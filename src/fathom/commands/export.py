"""From a checkpoint to a bundle, and the certificate of its routing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fathom import artefacts, show
from fathom.artefacts import check_outputs
from fathom.commands.bundle import show_bundle
from fathom.commands.options import DELTA, EPS, AsJson, Data, Out, need_training, takes
from fathom.errors import BundleError, ConfigError, DataError
from fathom.show import Activity

if TYPE_CHECKING:
    from fathom.exporter.engines.precision import Bits
    from fathom.runtime.bundle import Bundle
    from fathom.selector.certificate import Certificate, Kind
    from fathom.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class PrecisionOptions:
    """In how many bits a bundle is written, and what that may cost."""

    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int4", "int4+lora", "mixed"] | None,
        typer.Option(help="Precision of the engines. Default: the profile's, otherwise fp32."),
    ] = None
    item_precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option(
            help="Precision of the item vectors; fp16 takes half the memory, int8 a quarter."
            " Default: the profile's, otherwise fp32."
        ),
    ] = None
    profile: Annotated[str | None, typer.Option(help="Profile or tier to take precisions and allowed loss from.")] = (
        None
    )
    max_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of NDCG@10 that may be lost. Default: the profile's, otherwise 0.01."),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            help="int4+lora: the checkpoint that `fathom heal --set train.heal_tune=qlora` was given; what is lost is"
            " measured against it."
        ),
    ] = None
    ranking: Annotated[
        Path | None, typer.Option(help="mixed: ranking.json; the more important a layer, the more bits it gets.")
    ] = None
    budget_mb: Annotated[float | None, typer.Option(min=0, help="mixed: size of the weights of all layers, in MB.")] = (
        None
    )

    def arguments(self, checkpoint: "Checkpoint") -> dict[str, Any]:
        """What these options mean to the exporter."""
        from fathom.edge_profiles.profile import load_profile
        from fathom.training.checkpoint import Checkpoint

        device = load_profile(self.profile) if self.profile else None
        precision = self.precision or (device.precision if device else "fp32")
        item_precision = self.item_precision or (device.item_precision if device else "fp32")
        found: dict[str, Any] = {"precision": precision, "item_precision": item_precision}
        if precision == "mixed":
            found["layer_bits"] = self._layer_bits(checkpoint)
        if self.reference is not None:
            found["reference"] = Checkpoint.load(self.reference)
        max_loss = device.max_loss if device and self.max_loss is None else self.max_loss
        if max_loss is not None:
            found["max_loss"] = max_loss
        return found

    def _layer_bits(self, checkpoint: "Checkpoint") -> "dict[int, Bits]":
        from fathom.exporter.engines.precision import mixed_bits
        from fathom.importance.layer_ranking import LayerRanking

        if self.ranking is None or self.budget_mb is None:
            raise ConfigError("--precision mixed needs --ranking and --budget-mb")
        return mixed_bits(checkpoint.model, LayerRanking.load(self.ranking).consensus_order, self.budget_mb)


@takes(bits=PrecisionOptions)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder; a healed one if a plan is given.")],
    data: Data,
    out: Out,
    bits: PrecisionOptions,
    plan: Annotated[
        Path | None, typer.Argument(help="plan.json; a checkpoint that was not healed for it is refused.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle. Default: the name of the data set.")] = None,
    every_length: Annotated[
        bool, typer.Option("--every-length", help="Check parity with torch at every history length.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a bundle: early-exit engines checked against torch, item index, selector, manifest.

    With fewer bits than fp32 the quality is measured too, and an export that loses too much is refused.

    Example: fathom export build/ml-100k/healed/prefix --data build/ml-100k/dataset --out small --precision int8

    Example: fathom export ADAPTED --data DATASET --out small --precision int4+lora --reference CHECKPOINT
    """
    need_training()
    from fathom.exporter.bundle.export import export as write_bundle
    from fathom.exporter.planning.plan import DepthPlan
    from fathom.training.checkpoint import Checkpoint
    from fathom.training.dataset import Dataset

    check_outputs((out, artefacts.BUNDLE), inputs=[checkpoint, data, plan, bits.ranking, bits.reference])
    dataset, loaded = Dataset.load(data), Checkpoint.load(checkpoint)
    arguments = bits.arguments(loaded) | {"name": name or str(dataset.meta["name"]), "every_length": every_length}
    with Activity("export") as activity:
        made_for = DepthPlan.load(plan) if plan else None
        write_bundle(loaded, dataset, out, plan=made_for, progress=activity.update, **arguments)
    show_bundle(out, as_json=as_json)


def certify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; the certificate is written into it.")],
    data: Annotated[Path | None, typer.Option("--data", help="Dataset folder, made by `fathom data prepare`.")] = None,
    from_log: Annotated[
        Path | None, typer.Option(help="In place of --data: folder of requests that `fathom serve --record` wrote.")
    ] = None,
    eps: Annotated[
        float, typer.Option(help="Allowed loss, relative to the deepest depth: of NDCG@10, or of its top 10.")
    ] = EPS,
    delta: Annotated[float, typer.Option(help="Probability that any claim of a kind is wrong.")] = DELTA,
    kind: Annotated[
        Literal["quality", "agreement"] | None, typer.Option(help="What is certified. Default: both kinds.")
    ] = None,
    floor: Annotated[
        float, typer.Option(help="Kind agreement: share of the deepest depth's top 10 that an answer should have.")
    ] = 0.5,
    below: Annotated[
        float, typer.Option(help="Kind agreement: share of answers that may fall below the floor.")
    ] = 0.05,
    policy: Annotated[
        Literal["mixture", "learned"],
        typer.Option(help="Family of routings: shares of the depths, or learned from the features of requests."),
    ] = "mixture",
    profile: Annotated[
        list[str] | None,
        typer.Option(help="A profile's name or file, or a tier; repeatable. Default: all that come with Fathom."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report: JSON, PNG and an HTML page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Certify the cheapest routing over depths that loses less than eps against the deepest depth.

    Quality: NDCG@10 of the test items is at least (1 - eps) of the deepest depth's. Agreement: answers share at least
    1 - eps of the deepest depth's top 10 on average, and less than the floor for at most the share of --below; this
    needs no right answers. Without --kind both are tested, each with its own delta. Recorded requests (--from-log) tell
    of agreement only, and of mixtures of depths.

    Tested on the data set's test users with the bundle's own engines; the server then uses it. Users with the same
    history and the same next item count once. All claims of a kind share delta, so name only the profiles that matter.

    Every run is a new test that may be wrong with probability delta: decide on eps, delta, policy and profiles before
    the first run. Picking the best of n runs is wrong with probability up to n x delta.

    What is certified replaces what the bundle holds of that kind. If nothing can be certified, the bundle is left
    unchanged and the exit code is 2.

    Example: fathom certify build/ml-1m/bundle --data build/ml-1m/dataset --profile cloud
    """
    need_training()
    from fathom.exporter.certification.certify import check_risk
    from fathom.exporter.certification.routing_report import what_is_needed
    from fathom.selector.certificate import KINDS

    check_risk(eps, delta, floor, below)
    if (data is None) == (from_log is None):
        raise ConfigError("give --data or --from-log, one of them")
    if from_log is not None:
        _check_log_options(kind, policy, report)
    inputs = [each for each in (data, from_log) if each is not None]
    check_outputs((artefacts.real(bundle), artefacts.BUNDLE), (report, artefacts.REPORT_FOLDER), inputs=inputs)
    asked = {"eps": eps, "delta": delta, "floor": floor, "below": below, "family": policy}
    kinds = KINDS if kind is None else (kind,)
    certificate = _certify(bundle, inputs[0], profile, report, kinds, recorded=data is None, **asked)
    show.result(certificate.to_json(), as_json, show_certificate, certificate)
    if not certificate.certified:
        raise DataError(f"{bundle}: nothing is certified, so it is unchanged: {what_is_needed(certificate)}")


def _check_log_options(kind: "Kind | None", policy: str, report: Path | None) -> None:
    if kind != "agreement":
        raise ConfigError("recorded requests have no right answers; with --from-log give --kind agreement")
    if policy != "mixture" or report is not None:
        raise ConfigError("other policies than the mixture, and --report, need --data")


def _certify(
    bundle: Path,
    data: Path,
    profiles: list[str] | None,
    report: Path | None,
    kinds: "tuple[Kind, ...]",
    *,
    recorded: bool,
    **test: Any,
) -> "Certificate":
    from fathom.exporter.certification.certify import certify, measure_bundle, measure_recorded, write_certificate
    from fathom.exporter.certification.depth_sets import depth_sets
    from fathom.exporter.certification.routing_report import make_report, write_report
    from fathom.training.dataset import Dataset

    opened = _open_to_certify(bundle)
    dataset = None if recorded else Dataset.load(data)
    sets = depth_sets(opened, profiles or ())
    if again := [kind for kind in kinds if opened.certificate and opened.certificate.of(kind)]:
        show.note(
            f"warning: {' and '.join(again)} of this bundle was certified before: delta holds for one certification of"
            " the same data, not for the best of several"
        )
    with Activity("certify") as activity:
        if dataset is None:
            measured = measure_recorded(opened, data, progress=activity.update)
        else:
            measured = measure_bundle(opened, dataset, progress=activity.update)
        activity.update("testing routings")
        first, *others = (certify(opened, measured, depth_sets=sets, kind=kind, **test) for kind in kinds)
        certificate = first.beside(*others)
        if certificate.certified:
            write_certificate(opened, certificate)
        if report is not None:
            activity.update("judging every policy against static depths")
            write_report(make_report(opened.manifest.name, measured), certificate, report)
    return certificate


def _open_to_certify(path: Path) -> "Bundle":
    from fathom.runtime.bundle import Bundle
    from fathom.runtime.bundle_contents import read_certificate

    bundle = Bundle.open(path, with_certificate=False)
    try:
        return replace(bundle, certificate=read_certificate(path, bundle.manifest))
    except BundleError as error:
        show.note(f"warning: {error}; if anything is certified now, all that it holds is replaced")
        return bundle


def show_certificate(certificate: "Certificate") -> None:
    """A table of the claims, and of each claim's parts of the users."""
    from fathom.exporter.certification.routing_report import bucket_rows, certificate_rows
    from fathom.exporter.certification.routing_table import percent, promise_words

    for kind, promise in certificate.promises.items():
        title = f"{kind.capitalize()}: {promise_words(kind, promise)}; confidence {percent(1 - promise.delta)}"
        show.table(title, certificate_rows(certificate, kind))
        for claim in certificate.of(kind):
            if claim.buckets:
                title = f"{kind.capitalize()}, depths {', '.join(map(str, claim.depths))}: bounds that hold together"
                show.table(title, bucket_rows(claim, promise.eps))
