"""Which layers of a model of reactions matter: RXNFP, twelve layers, fills in masked atoms of esterifications.

pip install --no-deps rxnfp==0.1.0
"""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, logging

from fathom.importance.analyzer import create_analyzer
from fathom.importance.tasks.interface import IGNORED
from fathom.importance.tasks.many_labels import MaskedTokens

ACIDS = ("C", "CC", "CCC", "CC(C)", "C=C", "ClC", "c1ccccc1", "FC(F)(F)")
ALCOHOLS = ("C", "CC", "CCC", "C(C)C", "CCCC", "CC=C", "Cc1ccccc1", "CCCl")
#: Tokens of SMILES (Schwaller et al. 2019, arXiv 1811.02633).
TOKEN = re.compile(r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%\d{2}|\d")
MASKED = 0.15

# The checkpoint has other heads too; transformers would warn about them.
logging.set_verbosity_error()
package = find_spec("rxnfp")
if package is None or not package.submodule_search_locations:
    raise SystemExit("rxnfp is not installed: pip install --no-deps rxnfp==0.1.0")
folder = Path(package.submodule_search_locations[0]) / "models/transformers/bert_pretrained"
number = {name: place for place, name in enumerate((folder / "vocab.txt").read_text().splitlines())}
model = BertForMaskedLM.from_pretrained(folder, config=BertConfig.from_json_file(folder / "config.json")).eval()

reactions = [f"{acid}C(=O)O.O{alcohol}>>{acid}C(=O)O{alcohol}" for acid in ACIDS for alcohol in ALCOHOLS]
split = [["[CLS]", *TOKEN.findall(reaction), "[SEP]"] for reaction in reactions]
longest = max(map(len, split))
tokens = torch.tensor([[number[token] for token in [*own, *["[PAD]"] * (longest - len(own))]] for own in split])
real = tokens != number["[PAD]"]
# Of the product alone: what comes behind the arrow.
product = (tokens == number[">>"]).cumsum(1).bool() & real & (tokens != number[">>"]) & (tokens != number["[SEP]"])
masked = product & (torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < MASKED)
# At least one token of each reaction.
masked[torch.arange(len(tokens)), real.sum(1) - 2] = True
batch = {
    "input_ids": tokens.masked_fill(masked, number["[MASK]"]),
    "attention_mask": real.long(),
    "labels": tokens.masked_fill(~masked, IGNORED),
}

analyzer = create_analyzer("rxnfp", analysis_methods=["ablation", "block_influence"], task=MaskedTokens())
analyzer.load_model(model)
ranking = analyzer.analyze_importance([batch])
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))
for ratio in (1.1, 1.3, 2):
    plan = analyzer.generate_compression_plan(target_ratio=ratio)
    right = {when: found["token_accuracy"] for when, found in plan.report(plan.apply())["metrics"].items()}
    print(f"{len(plan.keep)} of {ranking.layers} layers: {right['after']:.0%} of the masked tokens are right,", end=" ")
    print(f"{right['before']:.0%} with all")
