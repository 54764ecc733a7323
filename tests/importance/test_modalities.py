"""How much depends on which modality, on models of which it is known; and what other models say of a model."""

import numpy as np
import pytest
import torch
from any_models import CLASSES, SAMPLES, SIZES, TEXT, Slow, analyzer_of, draw, mlp, transformers
from torch import Tensor, nn

from fathom.errors import ConfigError, DataError
from fathom.importance.analyzer import LayerAnalyzer, create_analyzer
from fathom.importance.transfer import transferred


class Both(nn.Module):
    """Reads a text and a picture, in one of some ways, and runs two layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList(Slow() for _ in range(2))

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        read = {"text": text, "exclusive or": (text != picture).float(), "mean": (text + picture) / 2}
        hidden = torch.cat([read[self.way], torch.zeros(len(text), 255)], 1)
        for layer in self.layers:
            hidden = layer(hidden)
        return torch.stack((0.5 - read[self.way][:, 0], read[self.way][:, 0] - 0.5), 1) * 4 + 0 * hidden[:, :2]


def shares_of(way: str, text: Tensor, picture: Tensor) -> tuple[LayerAnalyzer, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = Both(way)
    analyzer = create_analyzer(task_type="classification", modality_type="multimodal", analysis_methods=("gradient",))
    analyzer.load_model(model)
    labels = model(text, picture).argmax(1)
    return analyzer, [{"text": text, "picture": picture, "labels": labels}]


MODALITIES = {"text": ["text"], "picture": ["picture"]}


def bits(seed: int, count: int = 200) -> Tensor:
    return torch.randint(2, (count, 1), generator=torch.Generator().manual_seed(seed)).float()


def test_what_the_model_does_not_read_has_no_share() -> None:
    analyzer, loader = shares_of("text", bits(1), bits(2))
    found = analyzer.analyze_modalities(loader, MODALITIES)
    assert found.samples == 200
    assert found.rise["text"].low > 1
    assert found.rise["picture"].as_dict() == {"value": 0, "low": 0, "high": 0}
    assert min(found.by_layer["text"]) > 0
    assert found.by_layer["picture"] == (0, 0)
    assert found.cross_attention is None


def test_modalities_that_need_each_other_are_told_from_such_as_say_the_same() -> None:
    analyzer, loader = shares_of("exclusive or", bits(1), bits(2))
    assert analyzer.analyze_modalities(loader, MODALITIES).interaction["text", "picture"].high < 0
    # Both say the same, so that either is half the truth, and both are wrong together.
    analyzer, loader = shares_of("mean", bits(1), bits(1))
    found = analyzer.analyze_modalities(loader, MODALITIES)
    assert found.interaction["text", "picture"].low > 0
    assert found.rise["text"].low > 0


@pytest.mark.parametrize(("name", "given"), [("translation", "input_ids"), ("speech", "input_features")])
def test_a_decoder_s_cross_attention_has_a_share_of_each_layer(name: str, given: str) -> None:
    analyzer, model, batch = analyzer_of(name)
    found = analyzer.analyze_modalities([batch], {"given": [given], "written": ["decoder_input_ids"]})
    assert found.cross_attention is not None
    assert len(found.cross_attention) == len(found.by_layer["given"]) == 3
    assert all(0 < share < 1 for share in found.cross_attention)
    # A layer that gives nothing for what the encoder says.
    block = model.get_submodule(analyzer.layers.names[1])
    cross = block.layer[1].EncDecAttention.o if name == "translation" else block.encoder_attn.out_proj
    nn.init.zeros_(cross.weight)
    if cross.bias is not None:
        nn.init.zeros_(cross.bias)
    silent = analyzer.analyze_modalities([batch], {"given": [given], "written": ["decoder_input_ids"]})
    assert silent.cross_attention[1] == 0 < silent.cross_attention[0]


def test_what_cross_attention_adds_counts_where_the_state_is_added_inside_of_its_module() -> None:
    config = transformers.BertConfig(vocab_size=50, is_decoder=True, add_cross_attention=True, **SIZES)
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(config).eval()
    heard = torch.randn(SAMPLES, 5, 16, generator=torch.Generator().manual_seed(1))
    batch = {**TEXT, "encoder_hidden_states": heard}
    analyzer = create_analyzer(task_type="generation", modality_type="multimodal", analysis_methods=("gradient",))
    analyzer.load_model(model)
    modalities = {"heard": ["encoder_hidden_states"], "text": ["input_ids", "attention_mask"]}
    shares = analyzer.analyze_modalities([batch], modalities).cross_attention
    assert shares is not None
    assert min(shares) > 0
    for layer in model.bert.encoder.layer:
        nn.init.zeros_(layer.crossattention.output.dense.weight)
    silent = analyzer.analyze_modalities([batch], modalities)
    assert silent.cross_attention == (0, 0, 0, 0)
    assert silent.by_layer["heard"] == pytest.approx((0, 0, 0, 0), abs=1e-6)


def test_layers_that_are_calls_of_one_block_have_modalities_too() -> None:
    config = transformers.AlbertConfig(vocab_size=50, embedding_size=8, num_labels=CLASSES, **SIZES)
    analyzer = create_analyzer(analysis_methods=("gradient",))
    analyzer.load_model(transformers.AlbertForSequenceClassification(config))
    found = analyzer.analyze_modalities([{**TEXT, "labels": draw(SAMPLES)}], {"text": ["input_ids"]})
    assert len(found.by_layer["text"]) == 4
    assert found.cross_attention is None


def test_a_modality_that_is_not_there_is_one_line() -> None:
    analyzer, loader = shares_of("text", bits(1), bits(2))
    with pytest.raises(ConfigError, match="not called with sound; there are text, picture"):
        analyzer.analyze_modalities(loader, {"sound": ["sound"]})
    with pytest.raises(ConfigError, match="name the modalities"):
        analyzer.analyze_modalities(loader, {})
    with pytest.raises(ConfigError, match="each with a list"):
        analyzer.analyze_modalities(loader, {"text": "text"})
    one = {name: value[:1] for name, value in loader[0].items()}
    assert analyzer.analyze_modalities([*loader, one], MODALITIES).samples == 200
    for too_few in ([one], []):
        with pytest.raises(DataError, match="two samples or more"):
            analyzer.analyze_modalities(too_few, MODALITIES)
    plain = create_analyzer(analysis_methods=("gradient",))
    plain.load_model(mlp())
    with pytest.raises(ConfigError, match="give batches as dicts"):
        plain.analyze_modalities([(torch.randn(SAMPLES, 4), draw(SAMPLES, most=CLASSES))], {"table": ["x"]})


def test_other_models_say_by_how_deep_a_layer_lies() -> None:
    falling, rising = [5.0, 4.0, 1.0], [-1.0, 0.0, 9.0, 9.5]
    np.testing.assert_allclose(transferred([falling], 5), [1, 0.5, 0, -0.5, -1])
    np.testing.assert_allclose(transferred([falling, rising], 4), [0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(transferred(np.array([rising]), 2), [-1, 1])
    for known, layers in (([], 4), ([falling], 1), ([[1.0]], 4)):
        with pytest.raises(ConfigError, match="transfer needs"):
            transferred(known, layers)
