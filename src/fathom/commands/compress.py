"""A model of one's own with fewer layers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fathom import show
from fathom.artefacts import COMPRESSED, check_outputs
from fathom.commands.options import AsJson, Out, methods_within, need_training, takes
from fathom.commands.recording import keep_run
from fathom.errors import ConfigError, DataError, optional
from fathom.show import Activity

if TYPE_CHECKING:
    from torch import nn

    from fathom.importance.analyzer import LayerAnalyzer
    from fathom.importance.compression import CompressionPlan
    from fathom.importance.inputs import Inputs
    from fathom.importance.models.distillation import Distillation
    from fathom.importance.models.rows import RowFile
    from fathom.importance.search import Target

MODALITIES = {"text": "text", "image": "vision", "audio": "audio"}
TITLES = {"weights_mb": "weights, MB", "latency_ms": "one row, ms"}

Task = Annotated[
    str,
    typer.Option(
        help="What the model is for: classification, generation, question_answering, summarisation, translation."
    ),
]
Samples = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Table (CSV, JSON lines, Parquet, Excel) with text, image or audio (paths) and label (classification),"
        " text (generation), question, context and answer, or source and target.",
    ),
]


@dataclass(frozen=True)
class MeasureOptions:
    """How a model of one's own is measured."""

    methods: Annotated[
        str,
        typer.Option(
            help="Names separated by commas; all; or auto: the best within --budget. Default: ablation,"
            " block_influence, gradient, fisher.",
            show_default=False,
        ),
    ] = "ablation,block_influence,gradient,fisher"
    budget: Annotated[
        str | None,
        typer.Option(help="Run the --methods that predict best within this time: 60s or 5m. Default for auto: 60s."),
    ] = None
    samples: Annotated[int, typer.Option(min=2, help="Rows of the data to measure on, at most.")] = 256
    seed: Annotated[int, typer.Option(help="Seed of whatever a method draws.")] = 0


@dataclass(frozen=True)
class HealOptions:
    """How the smaller model is trained."""

    heal_epochs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train the smaller model so many times on the rows beyond --samples to give what the whole one gives.",
        ),
    ] = 0
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of healing.")] = 1e-4
    tune: Annotated[
        Literal["everything", "lora"],
        typer.Option(help="What healing trains; lora: adapters beside the layers' matrices, with the extra peft."),
    ] = "everything"
    layerwise: Annotated[
        float,
        typer.Option(min=0, help="Weight of matching the teacher's hidden states, added to the loss of its answers."),
    ] = 0.0
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Learn from this model, in place of the whole one: a folder or package with the same tokenizer or"
            " processor and the same classes. Repeat for several.",
            show_default=False,
        ),
    ] = None
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16: heal in mixed precision.")] = "fp32"

    def distillation(self, seed: int) -> "Distillation | None":
        """How to heal, None for not at all; raises ConfigError for settings of a healing that is not asked for."""
        from fathom.importance.models.distillation import Distillation

        if self.tune == "lora":
            optional("peft", "peft")
        given = asdict(self)
        epochs, _ = given.pop("heal_epochs"), given.pop("teacher")
        if epochs:
            return Distillation(epochs, seed=seed, **given)
        if self != HealOptions():
            raise ConfigError("--learning-rate, --tune, --layerwise, --teacher and --precision need --heal-epochs")
        return None


@dataclass(frozen=True)
class TargetOptions:
    """How small the model shall be."""

    ratio: Annotated[
        float | None,
        typer.Option(
            help="The layers shall have at least so many times fewer parameters. Default: 2, without another target.",
            show_default=False,
        ),
    ] = None
    memory_mb: Annotated[
        float | None, typer.Option(help="In place of --ratio: all weights take at most so many MB (10^6 bytes).")
    ] = None
    latency_ms: Annotated[
        float | None, typer.Option(help="In place of --ratio: one row takes at most so many milliseconds, here.")
    ] = None
    min_quality: Annotated[
        float | None,
        typer.Option(
            help="In place of --ratio: at least this share of the metric stays, after healing if there is any."
        ),
    ] = None

    def wanted(self) -> "Target":
        """The one target; raises ConfigError for none that makes sense."""
        from fathom.importance.search import Target

        given = asdict(self)
        if all(value is None for value in given.values()):
            given["ratio"] = 2.0
        try:
            return Target(**given)
        except ConfigError as error:
            said = str(error)
            for name in given:
                said = said.replace(name, f"--{name.replace('_', '-')}")
            raise ConfigError(said) from None


def analyzer_of(
    model: str, task: str, data: Path, options: MeasureOptions
) -> tuple["LayerAnalyzer", "RowFile", "RowFile"]:
    """An analyzer with its model, the rows of the file to measure on, and the others."""
    from fathom.importance.analyzer import TaskType, create_analyzer
    from fathom.importance.models.load import load_model, load_reader
    from fathom.importance.models.media import kind_of, read_media
    from fathom.importance.models.texts import check_has_texts, read_texts

    if ":" in model and not Path(model).exists():
        raise ConfigError(f"{model}: rows need a tokenizer or processor; use create_analyzer (docs/layers.md)")
    names, seconds = methods_within(options.methods, options.budget)
    more = {"samples": options.samples, "seed": options.seed, "budget_seconds": seconds}
    kind = kind_of(data, task)
    analyzer = create_analyzer(model, task, MODALITIES[kind], names, **more)
    check_has_texts(task)
    opened, reader = load_model(model, head_for(TaskType(task).value, kind)), load_reader(model, kind)
    rows = read_texts(data, task, reader, opened) if kind == "text" else read_media(data, kind, reader, opened)
    analyzer.load_model(opened, tokenizer=reader)
    return analyzer, *rows.split(options.samples)


def head_for(task: str, kind: str) -> str:
    """What ``load_model`` is asked for."""
    return task if kind == "text" else f"{kind} {task}"


def teacher_of(name: str, task: str, rows: "RowFile", model: "nn.Module") -> "nn.Module":
    """A model to learn from; raises ConfigError where it reads or answers otherwise than the one that is healed."""
    from fathom.importance.models.load import load_model, load_reader

    own, other = rows.reader, load_reader(name, rows.kind)
    if rows.kind == "text" and own.get_vocab() != other.get_vocab():
        raise ConfigError(f"--teacher {name}: its tokenizer differs from the model's")
    if rows.kind != "text" and own.to_dict() != other.to_dict():
        raise ConfigError(f"--teacher {name}: its processor of {rows.kind} files differs from the model's")
    teacher = load_model(name, head_for(task, rows.kind))
    classes, known = (getattr(each.config, "label2id", None) for each in (teacher, model))
    if task == "classification" and classes != known:
        raise ConfigError(f"--teacher {name}: has the classes {classes}, and the model {known}")
    return teacher


@dataclass
class Healed:
    """Makes the model of a plan and heals it, each once."""

    batches: "Sequence[tuple[Inputs, Any]]"
    how: "Distillation"
    teachers: "Sequence[nn.Module]"
    _made: dict[tuple[int, ...], "nn.Module"] = field(default_factory=dict)

    def __call__(self, plan: "CompressionPlan") -> "nn.Module":
        """Its model."""
        from fathom.importance.models.stacks import in_short

        if plan.keep not in self._made:
            with Activity(f"heal the model without {', '.join(in_short(plan.left_out))}") as activity:
                how = replace(self.how, progress=lambda share, loss: activity.update(f"loss {loss:.4f}", share))
                self._made[plan.keep] = plan.heal(self.batches, how, teachers=self.teachers)
        return self._made[plan.keep]


@takes(target=TargetOptions, options=MeasureOptions, healing=HealOptions)
def compress(
    model: Annotated[str, typer.Argument(help="A folder with config.json, or a package that holds one.")],
    task: Task,
    data: Samples,
    out: Out,
    target: TargetOptions,
    options: MeasureOptions,
    healing: HealOptions,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, compared in onnxruntime.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave out the layers of a model that matter least, and say what that costs.

    Example: fathom compress build/reviews-model --task classification --data reviews.csv --ratio 1.5 --out build/small

    Example: fathom compress MODEL --task generation --data texts.csv --min-quality 0.95 --heal-epochs 3 --out small
    """
    need_training()
    read = [path for path in map(Path, (model, *(healing.teacher or ()))) if path.exists()]
    check_outputs((out, COMPRESSED), inputs=[data, *read])
    how, wanted = healing.distillation(options.seed), target.wanted()
    analyzer, rows, others = analyzer_of(model, task, data, options)
    if how and not others.rows:
        raise DataError(f"{data}: has no rows beyond --samples {options.samples} to heal on; lower --samples")
    teachers = [teacher_of(name, task, rows, analyzer.layers.model) for name in healing.teacher or ()]
    with Activity("rank the layers") as activity:
        analyzer.analyze_importance(rows, progress=activity.ranking)
    if how:
        healed = Healed(list(analyzer.batches_of(others)), how, teachers)
        plan = analyzer.plan_for(wanted, healed)
        smaller = healed(plan)
    else:
        with Activity("choose the layers"):
            plan = analyzer.plan_for(wanted)
            smaller = plan.apply()
    with Activity("measure"):
        report = plan.report(smaller)
        if how:
            report["before_healing"] = plan.report()
    with Activity(f"write {out}"):
        report = plan.save(out, smaller, onnx=onnx, report=report)
    after = {name: report[name]["after"] for name in ("loss", "weights_mb", "latency_ms")}
    asked = {name: value for name, value in asdict(target).items() if value is not None}
    keep_run(
        "compress",
        task=task,
        model=model,
        data=data,
        metrics={**report["metrics"]["after"], **after, "ratio": report["ratio"], "faster": report["faster"]},
        config={**asked, **asdict(options), **asdict(healing), "left_out": report["left_out"]},
        outputs=(out,),
    )
    if as_json:
        show.print_json(report)
        return
    _show(model, out, report)


def _show(model: str, out: Path, report: dict[str, Any]) -> None:
    """Print what was lost and won, before and after healing if there was any."""
    healed = "before_healing" in report
    steps = [report["before_healing"], report] if healed else [report]
    rows = [["", "before", *(["left out", "healed"] if healed else ["after"])]]
    rows.append(["layers", str(report["layers"]), *(str(len(step["kept"])) for step in steps)])
    for name, kind in (("parameters", ","), ("weights_mb", ".3g"), ("latency_ms", ".2f"), ("loss", ".4f")):
        rows.append(
            [
                TITLES.get(name, name),
                format(report[name]["before"], kind),
                *(format(step[name]["after"], kind) for step in steps),
            ]
        )
    for name, value in report["metrics"]["before"].items():
        rows.append([name, f"{value:.4f}", *(f"{step['metrics']['after'][name]:.4f}" for step in steps)])
    show.table(f"{model}, {report['samples']:,} samples", rows)
    facts = [
        ("left out", ", ".join(report["left_out"])),
        ("runs", f"{report['faster']:.2f} times as fast"),
        ("written", str(out) if report["opens_with_transformers"] else f"{out}, weights alone: see docs/layers.md"),
    ]
    show.facts("", facts)
