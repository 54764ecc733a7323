"""A model of one's own with fewer layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom import show
from fathom.artefacts import COMPRESSED, check_outputs
from fathom.commands.options import AsJson, Out, need_training, takes
from fathom.show import Activity

if TYPE_CHECKING:
    from fathom.importance.analyzer import LayerAnalyzer

Task = Annotated[
    str,
    typer.Option(
        help="What the model is for: classification, generation, question_answering, summarisation, translation."
    ),
]
Texts = Annotated[
    Path,
    typer.Option(
        "--data",
        help="CSV or JSON lines with text and label (classification), text (generation), question, context and answer,"
        " or source and target.",
    ),
]


@dataclass(frozen=True)
class MeasureOptions:
    """How a model of one's own is measured."""

    methods: Annotated[str, typer.Option(help="Importance methods, separated by commas, or all.")] = (
        "ablation,block_influence,gradient,fisher"
    )
    samples: Annotated[int, typer.Option(min=2, help="Rows of the data to measure on, at most.")] = 256
    seed: Annotated[int, typer.Option(help="Seed of whatever a method draws.")] = 0


def analyzer_of(model: str, task: str, data: Path, options: MeasureOptions) -> tuple["LayerAnalyzer", Any]:
    """An analyzer with its model, and the batches of the file."""
    from fathom.importance.analyzer import TaskType, create_analyzer
    from fathom.importance.models.load import load_model, load_tokenizer
    from fathom.importance.models.texts import check_has_texts, read_texts

    names = [name.strip() for name in options.methods.split(",") if name.strip()]
    analyzer = create_analyzer(model, task, "text", names, samples=options.samples, seed=options.seed)
    check_has_texts(task)
    opened, tokenizer = load_model(model, TaskType(task).value), load_tokenizer(model)
    texts = read_texts(data, task, tokenizer, opened, options.samples)
    analyzer.load_model(opened, tokenizer=tokenizer)
    return analyzer, texts


@takes(options=MeasureOptions)
def compress(
    model: Annotated[str, typer.Argument(help="A folder with config.json, or a package that holds one.")],
    task: Task,
    data: Texts,
    out: Out,
    options: MeasureOptions,
    ratio: Annotated[float, typer.Option(help="How many times fewer parameters the layers have then, at least.")] = 2.0,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, compared in onnxruntime.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave out the layers of a model that matter least, and say what that costs.

    Example: fathom compress build/reviews-model --task classification --data reviews.csv --ratio 1.5 --out build/small
    """
    need_training()
    check_outputs((out, COMPRESSED), inputs=[data, Path(model)] if Path(model).exists() else [data])
    analyzer, texts = analyzer_of(model, task, data, options)
    with Activity("rank the layers") as activity:
        analyzer.analyze_importance(texts, progress=activity.ranking)
    with Activity("choose the layers and measure") as activity:
        plan = analyzer.generate_compression_plan(target_ratio=ratio)
        report = plan.report()
    with Activity(f"write {out}"):
        plan.save(out, onnx=onnx, report=report)
    if as_json:
        show.print_json(report)
        return
    rows = [["", "before", "after"]]
    rows.append(["layers", str(report["layers"]), str(len(report["kept"]))])
    rows.append(["parameters", *(f"{report['parameters'][when]:,}" for when in ("before", "after"))])
    rows.append(["loss", *(f"{report['loss'][when]:.4f}" for when in ("before", "after"))])
    for name in report["metrics"]["before"]:
        rows.append([name, *(f"{report['metrics'][when][name]:.4f}" for when in ("before", "after"))])
    show.table(f"{model}, {report['samples']:,} samples", rows)
    facts = [
        ("left out", ", ".join(plan.left_out)),
        ("runs", f"{report['faster']:.2f} times as fast"),
        ("written", str(out)),
    ]
    show.facts("", facts)
