"""The layers of models that are not Fathom's: found, ranked by every method beside the truth, and left out.

Real models and such as are trained in minutes, of six modalities and nine tasks. For each: the blocks that are found
beside those that a person counts; every method's grade against the lattice, or why it does not apply; and at three
ratios of the layers' parameters what is kept of the model's quality on samples that nothing else has seen, as it is
left and healed, beside other choices of layers. Models and data are fetched into build/own_models. Stored as
``own_models/SUBJECT``.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from fathom.benchmarks.experiments.own_models import others, sound, text, vision
from fathom.benchmarks.experiments.own_models.study import RATIOS, study
from fathom.benchmarks.experiments.own_models.subjects import Subject
from fathom.benchmarks.experiments.own_models.tables import graded, own_models_section, stored_models
from fathom.benchmarks.record import RESULTS
from fathom.benchmarks.registry import Benchmark, Run
from fathom.errors import ConfigError
from fathom.files import write_json
from fathom.importance.choice import GRADED_MODELS
from fathom.importance.models.distillation import Distillation

SUBJECTS = {
    "minilm-reviews": Subject("classification", "text", 6, "accuracy", text.reviews, draws=1, steps=20),
    "minilm-titles": Subject("retrieval", "text", 6, "ndcg@10", text.titles, draws=1, steps=40),
    "minilm-questions": Subject("question_answering", "text", 6, "exact_match", text.questions, draws=1, steps=20),
    "smollm2": Subject(
        "generation", "text", 30, "token_accuracy", text.smollm2, Distillation(1, 5e-5), orders=2, draws=1, steps=12
    ),
    "t5-spelling": Subject(
        "translation",
        "text",
        6,
        "token_accuracy",
        text.spelling,
        Distillation(1, 1e-3),
        steps=50,
        modalities={"letters": ("input_ids", "attention_mask"), "sounds": ("decoder_input_ids",)},
    ),
    "efficientnet": Subject(
        "classification", "vision", 16, "accuracy", vision.efficientnet, Distillation(1, 5e-4), steps=40, answers="_fc"
    ),
    "vit": Subject("classification", "vision", 6, "accuracy", vision.vit, Distillation(1, 1e-3)),
    "vit-detection": Subject("detection", "vision", 6, "metric", vision.detection, Distillation(1, 1e-3)),
    "cnn-pixels": Subject(
        "segmentation", "vision", 6, "mean_iou", vision.segmentation, Distillation(1, 1e-3), steps=50
    ),
    "whisper-encoder": Subject("translation", "audio", 4, "token_accuracy", sound.whisper_encoder, compressed=False),
    "whisper-decoder": Subject(
        "translation",
        "audio",
        4,
        "token_accuracy",
        sound.whisper_decoder,
        draws=1,
        modalities={"sound": ("heard",), "text": ("decoder_input_ids",)},
    ),
    "resemblyzer": Subject("retrieval", "audio", 3, "recall@1", sound.voices, Distillation(4, 3e-4)),
    "words-and-patches": Subject(
        "classification",
        "multimodal",
        6,
        "accuracy",
        vision.asked,
        Distillation(1, 1e-3),
        modalities={"words": ("input_ids",), "patches": ("pixel_values",)},
    ),
    "gin-molecules": Subject("classification", "graph", 6, "accuracy", others.molecules, Distillation(2, 1e-3)),
    "mlp-adult": Subject(
        "classification", "tabular", 6, "accuracy", others.adult, Distillation(1, 1e-3), answers="head"
    ),
    "mlp-cartpole": Subject(
        "reinforcement_learning", "tabular", 6, "same_action", others.cartpole, Distillation(2, 1e-3)
    ),
    "recommender": Subject(
        "recommendation",
        "tabular",
        16,
        "ndcg@10",
        others.recommender,
        Distillation(1, 5e-4),
        orders=12,
        draws=1,
        steps=50,
    ),
}


def _measure(options: Namespace) -> Iterator[Run]:
    unknown = set(options.subjects) - set(SUBJECTS)
    if unknown:
        raise ConfigError(f"no subject is called {sorted(unknown)[0]}; there are {', '.join(SUBJECTS)}")
    for name in options.subjects or SUBJECTS:
        subject = SUBJECTS[name]
        healing = {key: value for key, value in asdict(subject.healing).items() if key != "progress"}
        config = {
            "subject": name,
            "about": " ".join((subject.make.__doc__ or "").split()),
            "task": subject.task,
            "modality": subject.modality,
            "metric": subject.metric,
            "ratios": RATIOS,
            "orders": subject.orders,
            "healing": {**healing, "steps": subject.steps},
        }
        yield Run(config, study(name, subject, options.seed), options.seed, f"own_models/{name}")
    learn_choice(options.results)


def learn_choice(folder: Path) -> None:
    """Write what the choice of methods for other models goes by: all stored ones."""
    known = [asdict(graded(run)) for run in stored_models(folder, tuple(SUBJECTS))]
    write_json(GRADED_MODELS, {"models": known})


def _section(folder: Path = RESULTS) -> str:
    return own_models_section(folder, tuple(SUBJECTS))


BENCHMARK = Benchmark(
    __doc__,
    "1 to 20 min a subject; about 500 MB, fetched",
    {"--subjects": (str,), "--seed": 0},
    _measure,
    _section,
    folders=("own_models",),
)
