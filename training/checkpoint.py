"""The checkpoint folder: a trained model with everything that is needed to use it elsewhere.

model.safetensors   the weights
config.json         schema_version, model (ModelConfig), train (TrainConfig), dataset sha256, split, sha256 of the files
items.parquet       the frozen id map: row i is item i (id, title, categories)
metrics.json        how training went: validation NDCG@10 per exit after each evaluated epoch, and seconds in all
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fathom.artefacts import CHECKPOINT, expect
from fathom.errors import ArtefactError
from fathom.files import new_folder, read_json, sha256_bytes, sha256_file, write_json
from fathom.training.model import ElasticModel, ModelConfig
from fathom.training.presets import TrainConfig

SCHEMA_VERSION = 1
WEIGHTS, CONFIG, ITEMS, METRICS = "model.safetensors", "config.json", "items.parquet", "metrics.json"


class CheckpointConfig(BaseModel):
    """``config.json``: the model's shape, how it was trained, and on what; ``dataset`` is the dataset's sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: ModelConfig
    train: TrainConfig
    dataset: str
    split: str
    sha256: dict[str, str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, its frozen id map and how it came about; row i of the map is item i.

    ``sha256`` names the weights, the config and the id map; it is "" until saved.
    """

    model: ElasticModel
    config: CheckpointConfig
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    metrics: Mapping[str, Any]
    sha256: str = ""

    def save(self, path: Path) -> "Checkpoint":
        """Write the folder whole or not at all; returns the checkpoint as it now is on disk."""
        items = pl.DataFrame(
            {"id": self.item_ids, "title": self.titles, "categories": [list(names) for names in self.categories]},
            schema={"id": pl.String, "title": pl.String, "categories": pl.List(pl.String)},
        )
        with new_folder(path, CHECKPOINT) as folder:
            state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
            save_file(state, folder / WEIGHTS)
            items.write_parquet(folder / ITEMS)
            hashes = {name: sha256_file(folder / name) for name in (WEIGHTS, ITEMS)}
            config = self.config.model_copy(update={"sha256": hashes})
            write_json(folder / CONFIG, config.model_dump(mode="json"))
            write_json(folder / METRICS, {"schema_version": SCHEMA_VERSION, **self.metrics})
        return type(self).load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a checkpoint folder; the model is on the CPU and in evaluation mode.

        Raises ArtefactError when a file is missing, changed, of another version, or not what it should be.
        """
        expect(path, CHECKPOINT)
        config = _read_config(path)
        for name, expected in config.sha256.items():
            if not (path / name).is_file():
                raise ArtefactError(f"{path / name}: missing from the checkpoint; train again")
            if sha256_file(path / name) != expected:
                raise ArtefactError(f"{path / name}: differs from its sha256 in {CONFIG}; train again")
        items = pl.read_parquet(path / ITEMS)
        metrics = read_json(path / METRICS, kind="checkpoint's metrics", schema_version=SCHEMA_VERSION)
        return cls(
            model=_read_model(path / WEIGHTS, config.model),
            config=config,
            item_ids=tuple(items["id"].to_list()),
            titles=tuple(items["title"].to_list()),
            categories=tuple(tuple(names) for names in items["categories"].to_list()),
            metrics={key: value for key, value in metrics.items() if key != "schema_version"},
            sha256=sha256_bytes(f"{sha256_file(path / CONFIG)} {sorted(config.sha256.items())}".encode()),
        )


def _read_config(path: Path) -> CheckpointConfig:
    value = read_json(path / CONFIG, kind="checkpoint", schema_version=SCHEMA_VERSION)
    try:
        config = CheckpointConfig.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said, cure = first["msg"].removeprefix("Value error, "), "train again"
        if said.startswith("unknown"):
            cure = "install the package that has it"
        raise ArtefactError(f"{path / CONFIG}: {where}: {said}; {cure}") from None
    if set(config.sha256) != {WEIGHTS, ITEMS}:
        raise ArtefactError(f"{path / CONFIG}: sha256 does not name {WEIGHTS} and {ITEMS}; train again")
    return config


def _read_model(path: Path, config: ModelConfig) -> ElasticModel:
    try:
        return ElasticModel.of(config, load_file(path)).eval()
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(f"{path}: not the weights of this model ({reason}); train again") from None
