"""Models of many architectures, tiny and untrained, and a batch for each."""

from typing import Any

import torch
import transformers
from torch import nn

from fathom.importance.inputs import Inputs

transformers.logging.set_verbosity_error()

SAMPLES, TOKENS, SIDE = 3, 7, 32
#: Tried on every configuration; those that have such a field take it.
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_layers": 3,
    "num_heads": 4,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 64,
    "image_size": SIDE,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "use_cache": False,
}
TEXT_ENCODERS = (
    "albert bert camembert deberta-v2 distilbert electra ernie layoutlm megatron-bert mobilebert mpnet nystromformer"
    " roberta roformer squeezebert xlm-roberta xlnet modernbert"
)
DECODERS = (
    "bloom codegen cohere falcon gemma gemma2 gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite llama mamba mistral"
    " mixtral olmo olmo2 opt phi phi3 qwen2 qwen3 smollm3 stablelm starcoder2"
)
ENCODER_DECODERS = "bart blenderbot m2m_100 marian mbart pegasus t5 umt5"
VISION = (
    "beit convnext convnextv2 data2vec-vision deit dinov2 efficientnet mobilenet_v2 poolformer regnet resnet segformer"
    " swin vit"
)
SPEECH = "hubert wav2vec2 wavlm whisper"
STAGES: dict[str, Any] = {
    "hidden_sizes": [8, 16],
    "depths": [2, 2],
    "num_encoder_blocks": 2,
    "patch_sizes": [7, 3],
    "strides": [4, 2],
}
#: What differs.
SETTINGS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "electra": {"embedding_size": 16},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "num_layers": 3},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "mamba": {"state_size": 4},
    "xlnet": {"d_inner": 64, "n_layer": 3},
    "convnext": {"layer_scale_init_value": 1.0, "hidden_sizes": [8, 16], "depths": [2, 3], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [2, 3], "num_stages": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 3], "layer_type": "basic"},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 3], "groups_width": 8},
    "swin": {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
    | {"image_size": SIDE},
    "segformer": STAGES | {"num_attention_heads": [1, 2], "sr_ratios": [2, 1], "mlp_ratios": [2, 2]},
    "poolformer": STAGES | {"padding": [2, 1]},
    "efficientnet": {
        "in_channels": [32, 16, 16],
        "out_channels": [16, 16, 24],
        "strides": [1, 2, 1],
        "kernel_sizes": [3, 3, 3],
        "expand_ratios": [1, 2, 2],
        "num_block_repeats": [1, 2, 2],
        "depthwise_padding": [],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 1280,
    },
    "mobilenet_v2": {},
    "squeezebert": {"embedding_size": 32},
    "wav2vec2": {
        "conv_dim": (16, 16),
        "conv_stride": (4, 4),
        "conv_kernel": (8, 8),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0,
    },
    "whisper": {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
}
SETTINGS["hubert"] = SETTINGS["wavlm"] = SETTINGS["wav2vec2"]
#: How many layers a person counts in the largest stack; 3 elsewhere.
COUNTS = {
    "convnext": 5,
    "convnextv2": 5,
    "resnet": 5,
    "regnet": 5,
    "swin": 4,
    "segformer": 4,
    "poolformer": 4,
    "efficientnet": 5,
    "mobilenet_v2": 16,
}
NAMES = " ".join((TEXT_ENCODERS, DECODERS, ENCODER_DECODERS, VISION, SPEECH)).split()


def tiny_model(name: str, *, device: str = "cpu") -> nn.Module:
    """An untrained model of this architecture, in evaluation mode."""
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[name]
    plain = kind()
    # Those with stages say all sizes themselves.
    small = {} if name in COUNTS else SMALL
    wanted = {key: value for key, value in small.items() if key in vars(plain) or key in kind.attribute_map}
    wanted |= SETTINGS.get(name, {})
    if plain.is_encoder_decoder:
        wanted.pop("num_hidden_layers", None)
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModel.from_config(kind(**wanted)).eval()


def tiny_inputs(name: str) -> Inputs:
    """A batch for it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (SAMPLES, TOKENS), generator=generator)
    if name in VISION.split():
        return Inputs((), {"pixel_values": torch.randn(SAMPLES, 3, SIDE, SIDE, generator=generator)})
    if name == "whisper":
        sound = torch.randn(SAMPLES, 8, 40, generator=generator)
        return Inputs((), {"input_features": sound, "decoder_input_ids": ids})
    if name in SPEECH.split():
        return Inputs((), {"input_values": torch.randn(SAMPLES, 400, generator=generator)})
    if name in ENCODER_DECODERS.split():
        return Inputs((), {"input_ids": ids, "decoder_input_ids": ids.flip(1)})
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return Inputs((), {"input_ids": ids} if name in ("mamba", "xlnet") else {"input_ids": ids, "attention_mask": mask})
