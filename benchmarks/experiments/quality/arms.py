"""The arms: what is trained, healed or counted, and from which other arm it starts.

``ladder``            the recipe of ``fathom train``: one network with exits at 4, 8, 12 and 16 layers
``chosen``            the ladder with the settings that follow from the data, in place of the preset
``alone-D``           a network of D layers trained for itself, by the same recipe and for as many epochs
``time-D``            the same, for as long as ``alone-16`` trains: the fewer layers, the more epochs
``prefix``...         the ladder, healed in the order of a plan; ``permuted-random`` orders the layers by chance
``cut-``...           ``alone-16``, which never had exits, healed as a plan: choosing layers after training
``tune-``...          ``permuted-consensus`` with only a part of the weights healed, or none
``stacked``           exits stacked on a first one that takes the epochs of both stages, in a third of the second's each
``without-``...       the ladder without one part of the recipe, or with another choice

Removing the last layers first, the "reverse order" of layer pruning (arXiv 2411.15558), is the ``prefix`` plan.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fathom.errors import ConfigError
from fathom.exporter.planning.plan import Strategy
from fathom.training.presets import TrainConfig, apply_settings

DEPTHS = (4, 8, 12, 16)

#: Epochs of ``time-D``. On two cores an epoch of D layers of ML-100K takes about 2 + D / 2 s (the stored runs of
#: ``alone-D``); the 12 epochs of growth are those of 4 layers.
EPOCHS_IN_EQUAL_TIME = {4: 43, 8: 21, 12: 16, 16: 12, 24: 9, 32: 7}

PLANS: tuple[tuple[str, Strategy], ...] = (("nested", "nested"), ("permuted", "permuted-prefix"))


@dataclass(frozen=True)
class Arm:
    """One trained arm. ``start`` is the arm it is healed from, None when it is trained from nothing.

    ``change`` adapts the data set's config; ``order`` names how layers are ordered for ``strategy``: "consensus",
    "random", or an importance method. ``read``: the depths worth reading.
    """

    name: str
    group: str
    change: Callable[[TrainConfig], TrainConfig] = lambda config: config
    start: str | None = None
    strategy: Strategy = "prefix"
    order: str = "consensus"
    heals: bool = True
    read: tuple[int, ...] = DEPTHS


def alone(depth: int) -> Callable[[TrainConfig], TrainConfig]:
    """The config of a network of this depth that is trained for itself.

    It grows from 4 layers as the ladder does; 4 layers take the epochs of both stages in one.
    """

    def change(config: TrainConfig) -> TrainConfig:
        if depth == 4:
            rate, epochs = config.train.grow_learning_rate, config.train.grow_epochs + config.train.epochs
            one_stage = ("model.depths=4", "train.grow_epochs=0", f"train.epochs={epochs}")
            return apply_settings(config, ("model.layers=4", *one_stage, f"train.learning_rate={rate}"))
        return apply_settings(config, (f"model.layers={depth}", f"model.depths=4,{depth}", "train.exit_weight=0"))

    return change


def stacked(config: TrainConfig) -> TrainConfig:
    """The config of exits that leave the shallower ones as they are."""
    first = config.train.grow_epochs + config.train.epochs
    each = max(1, config.train.epochs // 3)
    return apply_settings(config, ("train.exits=stacked", f"train.grow_epochs={first}", f"train.epochs={each}"))


def in_equal_time(depth: int) -> Callable[[TrainConfig], TrainConfig]:
    """The config of ``alone`` with the epochs that fit into the time of 16 layers, all of which it takes."""

    def change(config: TrainConfig) -> TrainConfig:
        epochs = EPOCHS_IN_EQUAL_TIME[depth]
        return apply_settings(alone(depth)(config), (f"train.epochs={epochs}", f"train.patience={epochs}"))

    return change


def setting(*settings: str) -> Callable[[TrainConfig], TrainConfig]:
    """Changes of the config as on the command line."""
    return lambda config: apply_settings(config, settings)


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("ladder", "main"),
        Arm("chosen", "chosen"),
        *(Arm(f"alone-{depth}", "alone", alone(depth), read=(depth,)) for depth in DEPTHS),
        *(Arm(f"time-{depth}", "time", in_equal_time(depth), read=(depth,)) for depth in EPOCHS_IN_EQUAL_TIME),
        Arm("prefix", "plans", start="ladder"),
        *(
            Arm(f"{short}-{order}", "plans", start="ladder", strategy=strategy, order=order)
            for short, strategy in PLANS
            for order in ("consensus", "ablation", "random")
        ),
        Arm("cut-prefix", "cut", start="alone-16"),
        *(
            Arm(f"cut-nested-{order}", "cut", start="alone-16", strategy="nested", order=order)
            for order in ("consensus", "random")
        ),
        *(
            Arm(f"tune-{part}", "tune", setting(f"train.heal_tune={part}"), "ladder", "permuted-prefix")
            for part in ("exits", "last-three", "lora")
        ),
        Arm("tune-nothing", "tune", start="ladder", strategy="permuted-prefix", heals=False),
        Arm("stacked", "stacked", stacked),
        Arm("text", "text", setting("train.item_text=minilm")),
        Arm("with-distillation", "ablations", setting("train.distillation=0.5")),
        Arm("with-all-exits", "ablations", setting("train.exits_per_step=3")),
        Arm("without-layer-drop", "ablations", setting("train.layer_drop=0")),
        Arm("without-calm-epochs", "ablations", setting("train.calm_epochs=0")),
        Arm("without-growth", "ablations", lambda c: apply_settings(c, _all_together(c))),
        Arm("with-half-exit-weight", "ablations", setting("train.exit_weight=0.5")),
        Arm("with-one-target", "ablations", setting("train.targets_ahead=1")),
        Arm("with-512-negatives", "ablations", setting("train.full_softmax_items=0", "train.negatives=512")),
        Arm("with-temperature-.05", "ablations", setting("model.temperature=0.05")),
        Arm("with-dropout-.2", "ablations", setting("model.dropout=0.2")),
        Arm("with-width-128", "ablations", setting("model.width=128")),
        Arm("with-gated-blocks", "ablations", setting("model.block=gated")),
    )
}
GROUPS = tuple(dict.fromkeys(arm.group for arm in ARMS.values()))


def _all_together(config: TrainConfig) -> tuple[str, ...]:
    return ("train.grow_epochs=0", f"train.epochs={config.train.grow_epochs + config.train.epochs}")


def chosen(names: list[str]) -> list[Arm]:
    """The arms of these names or groups, in the order of ARMS; raises ConfigError for an unknown one."""
    unknown = [name for name in names if name not in ARMS and name not in GROUPS]
    if unknown:
        raise ConfigError(f"unknown arm {unknown[0]!r}; groups: {', '.join(GROUPS)}; arms: {', '.join(ARMS)}")
    return [arm for arm in ARMS.values() if arm.name in names or arm.group in names]
