"""Which layers of a model of antibodies matter: AntiBERTy, eight layers, fills in masked amino acids.

pip install --no-deps antiberty==0.1.3   # the weights are for non-commercial use
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, logging

from fathom.importance.analyzer import create_analyzer
from fathom.importance.tasks.interface import IGNORED
from fathom.importance.tasks.many_labels import MaskedTokens

#: Variable domains as published: trastuzumab, adalimumab and bevacizumab, heavy chains and light chains.
CHAINS = [
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAKYPHYYGSSHWYFDVWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCSASQDISNYLNWYQQKPGKAPKVLIYFTSSLHSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQYSTVPWTFGQGTKVEIK",
]
MASKED = 0.15

# The checkpoint has other heads too; transformers would warn about them.
logging.set_verbosity_error()
package = find_spec("antiberty")
if package is None or package.origin is None:
    raise SystemExit("antiberty is not installed: pip install --no-deps antiberty==0.1.3")
folder = Path(package.origin).parent / "trained_models"
names = (folder / "vocab.txt").read_text().split()
number = {name: place for place, name in enumerate(names)}
weights = folder / "AntiBERTy_md_smooth"
model = BertForMaskedLM.from_pretrained(weights, config=BertConfig.from_json_file(weights / "config.json")).eval()

longest = max(map(len, CHAINS))
padded = [["[CLS]", *chain, "[SEP]", *["[PAD]"] * (longest - len(chain))] for chain in CHAINS]
tokens = torch.tensor([[number[token] for token in chain] for chain in padded]).repeat(4, 1)
real = tokens != number["[PAD]"]
inside = real & (tokens != number["[CLS]"]) & (tokens != number["[SEP]"])
masked = inside & (torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < MASKED)
batch = {
    "input_ids": tokens.masked_fill(masked, number["[MASK]"]),
    "attention_mask": real.long(),
    "labels": tokens.masked_fill(~masked, IGNORED),
}

analyzer = create_analyzer("antiberty", analysis_methods=["ablation", "block_influence"], task=MaskedTokens())
analyzer.load_model(model)
ranking = analyzer.analyze_importance([batch])
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))
for ratio in (1.1, 1.3, 2):
    plan = analyzer.generate_compression_plan(target_ratio=ratio)
    right = {when: found["token_accuracy"] for when, found in plan.report(plan.apply())["metrics"].items()}
    print(
        f"{len(plan.keep)} of {ranking.layers} layers: {right['after']:.0%} of the masked amino acids are right,",
        end=" ",
    )
    print(f"{right['before']:.0%} with all")
