"""`fathom build`: from a data set to a bundle, stage by stage; what has not changed is not run again.

    dataset -> checkpoint -> ranking.json -> plans/ -> healed/STRATEGY -> comparison.json -> evaluation.json -> bundle

The last stage certifies the bundle.
All of them lie in one folder beside the bundle, and each is an artefact that the single commands read and write too.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fathom import artefacts, show
from fathom.artefacts import BUNDLE, CHECKPOINT, COMPARISON, DATASET, EVALUATION, PLANS, RANKING, check_outputs
from fathom.building.remaining import Remaining
from fathom.building.stages import Stage, Stamps
from fathom.edge_profiles.profile import DeviceProfile, load_profile, profile_names
from fathom.errors import BundleError, ConfigError, DataError
from fathom.exporter.bundle.export import export
from fathom.exporter.bundle.slice import slice_bundle
from fathom.exporter.certification.certify import certify, measure_bundle, write_certificate
from fathom.exporter.certification.depth_sets import depth_sets
from fathom.exporter.engines.adapted import ADAPTED
from fathom.exporter.planning.compare import compare
from fathom.exporter.planning.heal import heal
from fathom.exporter.planning.plan import DepthPlan, Strategy
from fathom.files import new_folder, read_json, sha256_file, write_json
from fathom.importance.adapter import rank_checkpoint
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.report.plot import plot_ranking
from fathom.runtime.bundle import Bundle
from fathom.runtime.manifest import CERTIFICATE_FILE, SIGNATURE_NAME, MetricInterval, sealed
from fathom.runtime.manifest_file import read_manifest
from fathom.selector.certificate import KINDS
from fathom.show import Activity, dataset_facts, err
from fathom.training.checkpoint import Checkpoint
from fathom.training.context_fit import fit_context
from fathom.training.counting import fit_counting
from fathom.training.data import prepare
from fathom.training.dataset import Dataset
from fathom.training.evaluate import SCHEMA_VERSION as EVALUATION_SCHEMA_VERSION
from fathom.training.evaluate import evaluate_model
from fathom.training.presets import TrainConfig, apply_settings
from fathom.training.request_time_fit import fit_request_time
from fathom.training.sources import PrepareOptions, files_read
from fathom.training.splits import split
from fathom.training.train import fit
from fathom.training.tuning import check_extra

COMPARISON_SCHEMA_VERSION = 1

#: The plans that are healed and compared: those that follow from the consensus, which every build measures.
COMPARED: tuple[Strategy, ...] = ("prefix", "nested", "permuted-prefix")

#: What of a profile says in how many bits a bundle is stored, and what that may cost.
STORED = ("precision", "item_precision", "max_loss")

_READING = [f"training/{name}" for name in ("catalogue.py", "data.py", "sources.py", "tables")]
_HEALING, _COMPARING = (["training", f"exporter/planning/{name}.py"] for name in ("heal", "compare"))
_EXPORTING = ["training", "exporter", "runtime", "selector"]


@dataclass(frozen=True)
class Build:
    """What to build; ``source``: a name or file of `fathom data prepare`, or a dataset folder that is used as it is.

    ``risk``: eps and delta of the certificate; None for none. ``profile``: whose precision and depths the bundle has,
    and whose routing alone is certified; None: fp32, all depths, and the routings of all shipped profiles.
    """

    source: str
    bundle: Path
    config: TrainConfig
    options: PrepareOptions | None = None
    users: int = 256
    risk: tuple[float, float] | None = None
    profile: str | None = None

    @cached_property
    def device(self) -> DeviceProfile | None:
        """The profile that the bundle is for."""
        return None if self.profile is None else load_profile(self.profile)

    @cached_property
    def remaining(self) -> Remaining:
        """How long the build still takes, while it runs."""
        return Remaining(self.config)

    @property
    def folder(self) -> Path:
        """Where the artefacts of the stages lie: beside the bundle."""
        return self.bundle.parent

    @property
    def is_prepared(self) -> bool:
        """Whether the source is a dataset folder already."""
        return (Path(self.source) / "meta.json").is_file()

    @property
    def dataset(self) -> Path:
        """The dataset folder that the later stages read."""
        return Path(self.source) if self.is_prepared else self.folder / "dataset"

    def run(self) -> list[str]:
        """Run every stage that is not current, in order; returns the names of those that ran."""
        return self._run(self.stages())

    def prepare(self) -> list[str]:
        """Make the dataset, unless it is current: the first stage, which needs no config. Returns as ``run`` does."""
        return self._run([] if self.is_prepared else self.stages()[:1])

    def _run(self, wanted: Sequence[Stage]) -> list[str]:
        check_extra(self.config.train.heal_tune)  # before training, which may take hours
        if self._adapted is not None:
            check_extra("qlora")
        stamps = Stamps(self.folder / "stages.json")
        stages = self.stages()
        beside = [(stamps.path, artefacts.STAMPS), (self.folder / "ranking.png", artefacts.RANKING_PLOT)]
        outputs = dict.fromkeys((stage.output, stage.kind) for stage in stages)
        check_outputs(*beside, *outputs, inputs=files_read(self.source, self.options))
        took, ran = stamps.seconds(), []
        for place, stage in enumerate(wanted):
            if not stamps.current(stage):
                self.remaining.names = _to_run(stages[place:], stamps)
                self.remaining.took = took
                stamps.run(stage)
                ran.append(stage.name)
        return ran

    def stages(self) -> list[Stage]:
        """The stages in order; a stage's settings are all that its output depends on besides its inputs and code."""
        data, folder, config = self.dataset, self.folder, self.config.model_dump()
        checkpoint, plans = folder / "checkpoint", folder / "plans"
        ranking, comparison, evaluation = (folder / f"{n}.json" for n in ("ranking", "comparison", "evaluation"))
        healed = [folder / "healed" / strategy for strategy in COMPARED]
        measured = [data, *healed, comparison]
        first = [] if self.is_prepared else [self._prepare_stage()]
        return [
            *first,
            Stage("train", checkpoint, CHECKPOINT, self._train, [data], config, ["training"]),
            Stage("rank", ranking, RANKING, self._rank, [data, checkpoint], self.users, ["training", "importance"]),
            Stage("plan", plans, PLANS, self._plan, [ranking], None, ["exporter/planning/plan.py"]),
            *(
                Stage(f"heal {name}", path, CHECKPOINT, self._healer(name), [data, checkpoint, plans], config, _HEALING)
                for name, path in zip(COMPARED, healed, strict=True)
            ),
            Stage("compare", comparison, COMPARISON, self._compare, [data, *healed], None, _COMPARING),
            Stage("evaluate", evaluation, EVALUATION, self._evaluate, measured, None, ["training"]),
            *self._export_stages(measured, config),
            *([] if self.risk is None else [self._certify_stage(self.risk)]),
        ]

    def _named(self, stage: str) -> str:
        """Bundles for several devices may lie beside each other, made from the same artefacts."""
        return stage if self.device is None else f"{stage} for {self.device.name}"

    @property
    def _adapted(self) -> Path | None:
        """The checkpoint with adapters, where the profile asks for them."""
        wanted = self.device is not None and self.device.precision == ADAPTED
        return self.folder / "healed" / ADAPTED if wanted else None

    def _export_stages(self, inputs: list[Path], config: Any) -> list[Stage]:
        kept = None if self.device is None else {key: getattr(self.device, key) for key in ("depths", *STORED)}
        stages = []
        if self._adapted is not None:
            stages = [Stage(f"heal as {ADAPTED}", self._adapted, CHECKPOINT, self._adapt, inputs, config, _HEALING)]
            inputs = [*inputs, self._adapted]
        export = Stage(self._named("export"), self.bundle, BUNDLE, self._export, inputs, kept, _EXPORTING, exported)
        return [*stages, export]

    def _prepare_stage(self) -> Stage:
        settings = [self.source, asdict(self.options) if self.options else None]
        sources = files_read(self.source, self.options)
        return Stage("prepare", self.dataset, DATASET, self._prepare, sources, settings, _READING)

    def _prepare(self) -> None:
        with Activity("prepare the data set", self.remaining) as activity:
            dataset = prepare(self.source, self.dataset, options=self.options, progress=activity.update)
        for name, text in dataset_facts(dataset.meta):
            err.print(f"  {name}: {text}", highlight=False, markup=False)

    def _train(self) -> None:
        dataset = Dataset.load(self.dataset)
        with Activity("train", self.remaining) as activity:
            fit(self.config, dataset, out=self.folder / "checkpoint", progress=activity.training)

    def _rank(self) -> None:
        checkpoint, dataset = Checkpoint.load(self.folder / "checkpoint"), Dataset.load(self.dataset)
        with Activity("rank the layers", self.remaining) as activity:
            ranking = rank_checkpoint(checkpoint, dataset, users=self.users, progress=activity.ranking)
            ranking.save(self.folder / "ranking.json")
            plot_ranking(ranking, self.folder / "ranking.png")

    def _plan(self) -> None:
        path, depths = self.folder / "ranking.json", self.config.model.depths
        ranking = LayerRanking.load(path)
        with Activity("plan the depths", self.remaining), new_folder(self.folder / "plans", PLANS) as plans:
            for strategy in COMPARED:
                DepthPlan.make(ranking, strategy, depths, ranking_sha256=sha256_file(path)).save(
                    plans / f"{strategy}.json"
                )

    def _healer(self, strategy: Strategy) -> Any:
        def run() -> None:
            checkpoint, dataset = Checkpoint.load(self.folder / "checkpoint"), Dataset.load(self.dataset)
            plan = DepthPlan.load(self.folder / "plans" / f"{strategy}.json")
            with Activity(f"heal as {strategy}", self.remaining) as activity:
                out = self.folder / "healed" / strategy
                heal(checkpoint, plan, dataset, out=out, config=self.config, progress=activity.training)

        return run

    def _healed(self, strategy: Strategy) -> Checkpoint:
        return Checkpoint.load(self.folder / "healed" / strategy)

    def _compare(self) -> None:
        dataset = Dataset.load(self.dataset)
        with Activity("compare the plans on validation items", self.remaining) as activity:
            comparison = compare({name: self._healed(name) for name in COMPARED}, dataset, progress=activity.update)
        evidence = {
            name: {key: value.model_dump() for key, value in figures.items()}
            for name, figures in comparison.evidence.items()
        }
        value = {"schema_version": COMPARISON_SCHEMA_VERSION, "winner": comparison.winner, "evidence": evidence}
        write_json(self.folder / "comparison.json", value)

    def _winner(self) -> tuple[Strategy, dict[str, dict[str, MetricInterval]]]:
        path = self.folder / "comparison.json"
        value = read_json(path, kind="comparison of plans", schema_version=COMPARISON_SCHEMA_VERSION)
        evidence = {
            name: {key: MetricInterval(**interval) for key, interval in figures.items()}
            for name, figures in value["evidence"].items()
        }
        return value["winner"], evidence

    def _evaluate(self) -> None:
        dataset, checkpoint = Dataset.load(self.dataset), self._healed(self._winner()[0])
        with Activity("evaluate every depth and the baselines", self.remaining) as activity:
            cut = split(dataset, checkpoint.config.split)
            counting = fit_counting(checkpoint.model, cut, dataset.n_items, progress=activity.update)
            settings = checkpoint.config.train.train
            timed = fit_request_time(checkpoint.model, settings, cut, progress=activity.update)
            report = evaluate_model(
                checkpoint.model,
                dataset,
                cut,
                counting=counting,
                request_time=timed,
                context=fit_context(checkpoint.model, settings, cut, timed, progress=activity.update),
                progress=activity.update,
            )
            write_json(self.folder / "evaluation.json", report.as_dict() | {"table": report.table()})

    def _export(self) -> None:
        dataset, (winner, evidence) = Dataset.load(self.dataset), self._winner()
        with Activity(f"export the {winner} plan and verify every engine", self.remaining) as activity:
            checkpoint, name = self._healed(winner), str(dataset.meta["name"])
            dropped = _added(self.bundle)
            if self.risk is not None:
                dropped.pop("certificate", None)
            arguments: dict[str, Any] = {"name": name, "evidence": evidence, "progress": activity.update}
            device = self.device
            if device is None:
                export(checkpoint, dataset, self.bundle, **arguments)
            else:
                arguments |= {key: getattr(device, key) for key in STORED}
                if self._adapted is not None:
                    checkpoint, arguments["reference"] = Checkpoint.load(self._adapted), checkpoint
                with tempfile.TemporaryDirectory(dir=self.folder, prefix=".whole-") as folder:
                    whole = Path(folder) / "bundle"
                    export(checkpoint, dataset, whole, **arguments)
                    slice_bundle(whole, device, self.bundle)
        if dropped:
            commands = (command.format(bundle=self.bundle, data=self.dataset) for command in dropped.values())
            show.note(
                f"{self.bundle}: exported again, so its {' and '.join(dropped)} no longer held and went;"
                f" to have that again: {'; '.join(commands)}"
            )

    def _adapt(self) -> None:
        assert self._adapted is not None
        dataset, checkpoint = Dataset.load(self.dataset), self._healed(self._winner()[0])
        model = checkpoint.model.config
        plan, settings = DepthPlan(model.strategy, model.layers, model.paths), ["train.heal_tune=qlora"]
        with Activity("heal adapters beside four-bit weights", self.remaining) as activity:
            config = apply_settings(self.config, settings)
            heal(checkpoint, plan, dataset, out=self._adapted, config=config, progress=activity.training)

    def _certify_stage(self, risk: tuple[float, float]) -> Stage:
        names = profile_names() if self.profile is None else [self.profile]
        settings = [self.config.model_dump(), [load_profile(name).depths for name in names]]
        run = partial(self._certify, *risk)
        return Stage(self._named("certify"), self.bundle, BUNDLE, run, [self.dataset], settings, _EXPORTING, tested)

    def _certify(self, eps: float, delta: float) -> None:
        with Bundle.open(self.bundle) as bundle, Activity("certify", self.remaining) as activity:
            if bundle.certificate is not None:
                return  # A second test of the same users could be wrong once more.
            try:
                sets = depth_sets(bundle, [] if self.profile is None else [self.profile])
                measured = measure_bundle(bundle, Dataset.load(self.dataset), progress=activity.update)
            except (ConfigError, DataError) as error:
                show.note(f"not certified: {error}")
                return
            quality, agreement = (
                certify(bundle, measured, eps=eps, delta=delta, depth_sets=sets, kind=kind) for kind in KINDS
            )
            write_certificate(bundle, quality.beside(agreement))

    def evaluation(self) -> dict[str, Any]:
        """Quality per depth and of the baselines on the test items; ``table``: as rows of text."""
        return read_json(self.folder / "evaluation.json", kind="evaluation", schema_version=EVALUATION_SCHEMA_VERSION)


def _to_run(stages: Sequence[Stage], stamps: Stamps) -> list[str]:
    """The stages that will run: the first, what is stale, and what needs the output of one that will run."""
    names: list[str] = []
    changed: set[Path] = set()
    for stage in stages:
        if not names or not changed.isdisjoint([*stage.inputs, stage.output]) or not stamps.current(stage):
            names.append(stage.name)
            changed.add(stage.output)
    return names


def exported(bundle: Path) -> str:
    """Names what ``export`` wrote, whatever `certify` and `profiles check` added; "" where it is no sound bundle."""
    try:
        with Bundle.open(bundle) as opened:
            manifest = opened.manifest
    except BundleError:
        return ""
    files = {name: entry for name, entry in manifest.files.items() if name != CERTIFICATE_FILE}
    return sealed(manifest.model_copy(update={"files": files, "fits": {}})).version


def tested(bundle: Path) -> str:
    """Names what ``certify`` tested, whether anything was certified or not; "" where it has tested nothing."""
    version = exported(bundle)
    return version if version and CERTIFICATE_FILE in read_manifest(bundle).files else ""


def _added(bundle: Path) -> dict[str, str]:
    """What a bundle got after its export and loses when it is exported again, and the command that adds it."""
    try:
        manifest = read_manifest(bundle)
    except BundleError:
        return {}
    added = {}
    if CERTIFICATE_FILE in manifest.files:
        added["certificate"] = "fathom certify {bundle} --data {data}"
    if manifest.fits:
        added["fit for a profile"] = "fathom profiles check {bundle} " + next(iter(manifest.fits))
    if (bundle / SIGNATURE_NAME).exists():
        added["signature"] = "fathom bundle sign {bundle} --key KEY"
    return added
