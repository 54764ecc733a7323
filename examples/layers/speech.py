"""Which layers of a speech model matter: a small Wav2Vec2 tells high tones from low ones in noise, trained here."""

import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from fathom.importance.analyzer import create_analyzer

RATE, LENGTH, CLASSES = 8_000, 4_000, 4

torch.manual_seed(0)
labels = torch.randint(CLASSES, (640,))
pitch = 300 * 1.5 ** (labels + torch.rand(len(labels)) * 0.5)
time = torch.arange(LENGTH) / RATE
sounds = torch.sin(2 * torch.pi * pitch[:, None] * time) + 0.5 * torch.randn(len(labels), LENGTH)
batches = list(zip(sounds.split(32), labels.split(32), strict=True))
learned, held = batches[:16], batches[16:]

config = Wav2Vec2Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    conv_dim=(32, 32),
    conv_stride=(8, 8),
    conv_kernel=(16, 16),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    classifier_proj_size=32,
    mask_time_prob=0.0,
    layerdrop=0.0,
    num_labels=CLASSES,
)
model = Wav2Vec2ForSequenceClassification(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(6):
    for batch, answers in learned:
        loss = nn.functional.cross_entropy(model(batch).logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

analyzer = create_analyzer("tones", task_type="classification", modality_type="audio")
analyzer.load_model(model)
ranking = analyzer.analyze_importance(held)
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))

plan = analyzer.generate_compression_plan(min_quality=0.95)
report = plan.report(plan.apply())
print(f"95 % of the accuracy with {len(plan.keep)} of {report['layers']} layers:", end=" ")
print(f"{report['metrics']['after']['accuracy']:.3f} of {report['metrics']['before']['accuracy']:.3f}")
