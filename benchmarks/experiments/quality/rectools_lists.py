"""Trains one RecTools model on exported events and writes the ten best items of every test user.

    build/rectools-env/bin/python rectools_lists.py FOLDER --model esasrec --seed 0 --epochs 100

``peers.py`` writes FOLDER/events.npz, runs this and reads FOLDER/lists.json. It runs in the
environment of rectools.txt, so it imports nothing of fathom.

sasrec    SASRec (Kang and McAuley 2018) with RecTools' default loss, the softmax over all items
esasrec   SASRec with LiGR layers and 256 sampled negatives (Tikhonovich et al. 2025, arXiv 2508.06450)
hstu      HSTU (Zhai et al. 2024, arXiv 2402.17152) on positions alone, with RecTools' tutorial's loss and sizes
"""

# mypy: ignore-errors
# The imports below are installed in the other environment only.

import argparse
import copy
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.ligr import LiGRLayers

LIST_LENGTH = 10
VALIDATION_USERS = 2_048
FULL_SOFTMAX_ITEMS = 10_000  # in larger catalogues sasrec samples as esasrec does
PACKAGES = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas")


class WithoutPadding(TransformerLightningModule):
    """RecTools' loss, computed where there is an item to predict and nowhere else: many times faster on a CPU.

    RecTools scores padded positions too, and gathers a vector for each position and negative.
    """

    def training_step(self, batch: dict, _batch_index: int) -> torch.Tensor:
        items = self.torch_model.item_model.get_all_embeddings()
        answered = batch["y"] != 0
        right = batch["y"][answered]
        vectors = self.torch_model.encode_sessions(batch, items)[answered]
        scores = self.torch_model.similarity_module(vectors, items) / self.logits_t
        if "negatives" in batch:
            scores = scores.gather(1, torch.cat([right[:, None], batch["negatives"][answered]], dim=1))
            right = torch.zeros_like(right)
        return torch.nn.functional.cross_entropy(scores, right)


def settings_of(model: str, train: Dataset) -> dict:
    """What the model is made with: what was published for MovieLens where histories are long, for Amazon where not.

    From the benchmark of the eSASRec paper (its hyperparameter table) and, for HSTU, from RecTools' HSTU tutorial.
    Two things differ. Few users make smaller batches, so that an epoch has steps enough. HSTU gets no timestamps: its
    time bias is told when the answer happens, which no other system here is.
    """
    lengths = train.interactions.df[Columns.User].value_counts()
    long = lengths.quantile(0.9) > 50
    batch = 128 if len(lengths) >= 4_000 else 32
    common = {"session_max_len": 200 if long else 50, "batch_size": batch, "lr": 1e-3, "n_heads": 1}
    if model == "hstu":
        loss = {"loss": "sampled_softmax", "n_negatives": 128, "lightning_module_kwargs": {"logits_t": 0.05}}
        return {**common, "n_factors": 50, "n_blocks": 2, "dropout_rate": 0.2, **loss, "relative_time_attention": False}
    sizes = {"n_factors": 64, "n_blocks": 2 if long else 1, "dropout_rate": 0.1 if long else 0.2}
    sampled = {"loss": "sampled_softmax", "n_negatives": 256}
    if model == "sasrec":
        all_items = train.item_id_map.size <= FULL_SOFTMAX_ITEMS
        return {**common, **sizes, **({"loss": "softmax"} if all_items else sampled)}
    return {**common, **sizes, **sampled, "transformer_layers_type": LiGRLayers, "use_key_padding_mask": True}


def interactions(users: np.ndarray, items: np.ndarray) -> Dataset:
    """RecTools' data set of events that are sorted by user and then by order, which one-second steps keep."""
    moments = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(users)), unit="s")
    return Dataset.construct(
        pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: moments})
    )


def best_items(model, histories: Dataset, users: np.ndarray) -> np.ndarray:
    """The best items that each user has not seen, best first, int (users, 10); -1 where there are no more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user whose items were never trained gets an empty list, which is a miss
        found = model.recommend(users, histories, k=LIST_LENGTH, filter_viewed=True, on_unsupported_targets="ignore")
    lists = np.full((len(users), LIST_LENGTH), -1)
    rows = np.searchsorted(users, found[Columns.User].to_numpy())
    lists[rows, found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    return lists


def ndcg(lists: np.ndarray, targets: np.ndarray) -> float:
    """Mean NDCG of one right item per list."""
    hits = lists == targets[:, None]
    return float(np.where(hits, 1 / np.log2(np.arange(LIST_LENGTH) + 2), 0).sum(1).mean())


def fit(model, train: Dataset, users: np.ndarray, targets: np.ndarray, epochs: int) -> list[tuple[int, float]]:
    """Train until the validation NDCG@10 has not risen for half of all epochs; the best weights stay in the model.

    users: sorted; targets: what followed each one's training events. Returns (epoch, validation NDCG@10).
    """
    every, curve, best = max(1, epochs // 25), [], None
    for epoch in range(every, epochs + 1, every):
        model.fit_partial(train, min_epochs=every, max_epochs=every)
        curve.append((epoch, ndcg(best_items(model, train, users), targets)))
        print(f"epoch {epoch}: validation NDCG@10 {curve[-1][1]:.4f}", flush=True)
        best_epoch = max(curve, key=lambda point: point[1])[0]
        if best_epoch == epoch:
            best = copy.deepcopy(model.torch_model.state_dict())
        if epoch - best_epoch >= epochs / 2:
            break
    model.torch_model.load_state_dict(best)
    return curve


def main() -> None:
    """Train, choose the epoch on validation, recommend from the test histories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=("sasrec", "esasrec", "hstu"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    started = time.monotonic()
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    seed_everything(arguments.seed, workers=True)
    events = np.load(arguments.folder / "events.npz")
    train = interactions(events["train_users"], events["train_items"])
    settings = settings_of(arguments.model, train)
    model = (HSTUModel if arguments.model == "hstu" else SASRecModel)(
        **settings,
        item_net_block_types=(IdEmbeddingsItemNet,),
        lightning_module_type=WithoutPadding,
        deterministic=True,
    )
    last = len(events["validation_users"]) - 1
    some = np.unique(np.linspace(0, last, min(last + 1, VALIDATION_USERS)).round().astype(int))  # evenly spread
    users, targets = events["validation_users"][some], events["validation_targets"][some]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curve = fit(model, train, users, targets, arguments.epochs)
    histories = interactions(events["history_users"], events["history_items"])
    report = {
        "lists": best_items(model, histories, events["test_users"]).tolist(),
        "versions": {name: version(name) for name in PACKAGES},
        "config": {name: getattr(value, "__name__", value) for name, value in settings.items()},
        "validation": curve,
        "seconds": round(time.monotonic() - started, 1),
    }
    (arguments.folder / "lists.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
