"""Everything a training run can be told, and the presets that were tuned for known datasets."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fathom.errors import ConfigError
from fathom.training.model import ModelSettings
from fathom.training.objectives import objective_names
from fathom.training.plugins import known, load, unknown
from fathom.training.tuning import Tune

GROUP = "fathom.presets"


class TrainSettings(BaseModel):
    """How a model is trained; an epoch is one pass over all training events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["leave-one-out", "temporal"] = Field(
        default="leave-one-out", description="held out: each user's last two items, or all that is newest"
    )
    seed: int = Field(default=0, ge=0, description="seed of every random choice")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on a GPU, else fp32")

    grow_epochs: int = Field(default=12, ge=0, description="epochs of the shallowest exit alone, which come first")
    grow_learning_rate: float = Field(
        default=2e-3, gt=0, description="highest rate of those epochs; falls to learning_rate"
    )
    epochs: int = Field(default=12, ge=1, description="epochs of all exits together")
    learning_rate: float = Field(default=1e-3, gt=0, description="highest rate of those epochs")
    heal_epochs: int = Field(default=3, ge=1, description="epochs after a plan has changed the layers' order")
    heal_learning_rate: float = Field(default=5e-4, gt=0, description="highest rate of those epochs")
    heal_tune: Tune = Field(
        default="everything", description="weights that healing trains; lora and qlora need the extra peft"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of a stage in which the learning rate rises")
    weight_decay: float = Field(default=0.01, ge=0, description="of AdamW")
    clip_norm: float = Field(default=1.0, gt=0, description="largest norm of a step's gradient")

    objective: str = Field(
        default="cross-entropy", description="loss of an exit: cross-entropy, or one that an installed package adds"
    )
    window: int = Field(default=50, ge=1, description="items of one training window")
    batch_tokens: int = Field(default=1600, ge=1, description="items of one batch, padding included")
    targets_ahead: int = Field(default=3, ge=1, description="following items to predict; the k-th weighs 1/k")
    negatives: int = Field(default=1024, ge=1, description="items to tell the right one from, in a large catalogue")
    full_softmax_items: int = Field(default=10_000, ge=0, description="catalogues up to this size compare all items")
    item_text: str = Field(
        default="", description="start from the items' titles: minilm, or an encoder's folder; empty: at random"
    )
    request_time: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: the time since the newest event moves user vectors where that helps on validation items",
    )
    context: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: the features of a request's context move user vectors where that helps on validation items",
    )
    forget_times: float = Field(default=0.1, ge=0, le=1, description="share of batches without timestamps")

    exits: Literal["together", "stacked"] = Field(
        default="together", description="stacked: a deeper exit leaves the shallower ones as they are, or adds nothing"
    )
    exit_weight: float = Field(
        default=1.0, ge=0, description="weight of a shallower exit's loss; the deepest's is 1; 0: the deepest alone"
    )
    exits_per_step: int = Field(default=1, ge=1, description="shallower exits in a step, drawn at random")
    distillation: float = Field(
        default=0.0, ge=0, le=1, description="share of a shallower exit's loss that imitates the deepest exit"
    )
    layer_drop: float = Field(
        default=0.05, ge=0, lt=1, description="chance that a step skips a layer above the first exit"
    )
    calm_epochs: int = Field(default=2, ge=0, description="last epochs of a stage, in which no layer is skipped")

    evaluate_every: int = Field(default=2, ge=1, description="epochs between two validations")
    validation_users: int = Field(default=2000, ge=1, description="most users of a validation, evenly spread")
    patience: int = Field(default=5, ge=1, description="validations without progress after which a stage ends")

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, objective: str) -> str:
        if objective not in objective_names():
            raise ValueError(unknown("objective", objective, objective_names()))
        return objective

    @model_validator(mode="after")
    def _something_to_stack_on(self) -> Self:
        if self.exits == "stacked" and not self.grow_epochs:
            raise ValueError("exits=stacked needs grow_epochs, in which the first exit is trained")
        return self


class TrainConfig(BaseModel):
    """A whole run: the model's shape and its training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()


PRESETS: dict[str, TrainConfig] = {
    "ml-100k": TrainConfig(),
    "ml-1m": TrainConfig(
        model=ModelSettings(span=200, dropout=0.2, temperature=0.05),
        train=TrainSettings(
            window=200, batch_tokens=6400, grow_epochs=10, epochs=22, targets_ahead=1, evaluate_every=3
        ),
    ),
    "beauty": TrainConfig(
        model=ModelSettings(max_history=50, dropout=0.4),
        train=TrainSettings(grow_epochs=12, epochs=10),
    ),
    "retail": TrainConfig(
        model=ModelSettings(span=100, dropout=0.2),
        train=TrainSettings(
            window=100, batch_tokens=3200, grow_epochs=5, epochs=4, heal_epochs=1, targets_ahead=20, evaluate_every=1
        ),
    ),
    "tiny": TrainConfig(
        model=ModelSettings(width=16, heads=1, max_history=32, span=16, dropout=0.1),
        train=TrainSettings(grow_epochs=2, epochs=2, heal_epochs=1, window=16, batch_tokens=1024, evaluate_every=1),
    ),
}


def preset_names() -> tuple[str, ...]:
    """The presets there are: ours, and those of installed packages (entry points ``fathom.presets``)."""
    return known(GROUP, PRESETS)


def preset(name: str) -> TrainConfig:
    """The preset of that name; raises ConfigError that names the near match."""
    if name in PRESETS:
        return PRESETS[name]
    found: TrainConfig = load(GROUP, name, "preset", preset_names(), _checked)
    return found


def _checked(found: Any) -> TrainConfig:
    if not isinstance(found, TrainConfig):
        raise ValueError("is no fathom.training.presets.TrainConfig")
    return found


def apply_settings(config: TrainConfig, settings: Sequence[str]) -> TrainConfig:
    """The config with ``section.key=value`` changes, as ["train.epochs=3", "model.width=32"].

    A value is read as JSON, or as text where it is not JSON; 4,8 is a list. Raises ConfigError for an unknown key
    (it names the near match) or an impossible value.
    """
    changed = config.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or section not in changed or name not in changed[section]:
            known = [f"{part}.{field}" for part, fields in changed.items() for field in fields]
            reason = "is not key=value" if not equals else f"names no setting{hint(key.strip(), known)}"
            raise ConfigError(f"--set {setting!r} {reason}; an example: --set train.epochs=3")
        before, value = changed[section][name], _value(text.strip())
        if isinstance(before, tuple) and not isinstance(value, list):
            value = [value]
        if isinstance(before, str) and not isinstance(value, str):
            value = text.strip()  # a folder may be called 2024, or the text may be empty
        changed[section][name] = value
    try:
        return TrainConfig.model_validate(changed)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--set {'.'.join(map(str, first['loc']))}: {said}") from None


def _value(text: str) -> Any:
    for candidate in (text, f"[{text}]"):
        try:
            return json.loads(candidate)
        except json.JSONDecodeError:
            continue
    return text


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: the nearest known one, if any is near."""
    last = {key.rpartition(".")[2]: key for key in known}
    near = difflib.get_close_matches(name, last.values(), 1) or [
        last[key] for key in difflib.get_close_matches(name.rpartition(".")[2], last, 1)
    ]
    return f"; did you mean {near[0]!r}?" if near else ""
