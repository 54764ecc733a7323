import pytest
from pydantic import ValidationError

from fathom.errors import ConfigError
from fathom.training.presets import PRESETS, TrainConfig, apply_settings, preset


def test_every_preset_has_sixteen_layers_and_four_exits() -> None:
    assert {"ml-100k", "ml-1m", "beauty", "retail", "tiny"} == set(PRESETS)
    for config in PRESETS.values():
        assert (config.model.layers, config.model.depths) == (16, (4, 8, 12, 16))


def test_settings_change_what_they_name_and_nothing_else() -> None:
    base = preset("tiny")
    changed = apply_settings(
        base, ["train.epochs=3", "model.block=gated", "model.time_bias=true", "model.depths=8,16", "train.seed = 7"]
    )
    assert changed.train == base.train.model_copy(update={"epochs": 3, "seed": 7})
    assert changed.model == base.model.model_copy(update={"block": "gated", "time_bias": True, "depths": (8, 16)})
    assert apply_settings(base, []) == base


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=3", r"did you mean 'train.epochs'"),
        ("epochs=3", r"did you mean 'train.epochs'"),
        ("model.wdith=3", r"did you mean 'model.width'"),
        ("trian.epochs=3", r"did you mean 'train.epochs'"),
        ("qqq=3", r"names no setting"),
        ("train.epochs", r"is not key=value"),
        ("train.epochs=-1", r"train.epochs: .*greater"),
        ("train.epochs=many", r"train.epochs: .*integer"),
        ("model.block=lstm", r"model.block: .*hstu"),
        ("model.heads=7", r"not a multiple of heads"),
        ("model.depths=99", r"do not lie in 1..16"),
        ("train.learning_rate=NaN", r"train.learning_rate"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        apply_settings(preset("tiny"), [setting])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "2024", "true", "[1]", "minilm", "a folder"])
def test_a_text_is_taken_as_it_is_typed(text: str) -> None:
    assert apply_settings(preset("tiny"), [f"train.item_text={text}"]).train.item_text == text


def test_an_unknown_preset_names_the_near_match() -> None:
    with pytest.raises(ConfigError, match=r"did you mean ml-100k"):
        preset("ml100k")


def test_a_config_forbids_unknown_keys_and_changes() -> None:
    with pytest.raises(ValidationError, match="extra"):
        TrainConfig.model_validate({"train": {"epcohs": 1}})
    with pytest.raises(ValidationError, match="frozen"):
        preset("tiny").train.epochs = 9
