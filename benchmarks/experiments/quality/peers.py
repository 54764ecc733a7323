"""RecTools' SASRec, eSASRec and HSTU, trained on exactly our split and judged by our metrics.

RecTools' pins clash with ours, so it runs in an environment of its own (rectools.txt), which learns from the training
events, stops by the validation items and sees each test user's history; test targets never leave this side.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fathom.errors import ArtefactError, ConfigError, DataError
from fathom.training.metrics import Floats
from fathom.training.splits import Cases, Split

Peer = Literal["sasrec", "esasrec", "hstu"]
PEERS: tuple[Peer, ...] = ("sasrec", "esasrec", "hstu")
PYTHON = Path("build/rectools-env/bin/python")
SCRIPT = Path(__file__).with_name("rectools_lists.py")
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}  # a third less time on a CPU


def places_of_lists(lists: NDArray[np.integer[Any]], cases: Cases) -> Floats:
    """Where each case's target stands in its list, from 1; infinity where it is not there. float64 (cases,).

    lists: (cases, k) item indices, best first, -1 where a list has ended. Raises DataError for another number of lists.
    """
    if lists.ndim != 2 or len(lists) != len(cases):
        raise DataError(f"lists of shape {lists.shape} for {len(cases)} cases; there must be one list for each")
    hits = lists == cases.targets[:, None]
    return np.where(hits.any(1), 1.0 + hits.argmax(1), np.inf)


def export(split: Split, path: Path) -> None:
    """Write the events that a peer may see: training, validation, and the histories of the test users.

    users, items: one entry per event, sorted by user, oldest first; an npz of arrays.
    """
    histories = split.test.histories
    np.savez(
        path,
        train_users=split.train.owners,
        train_items=split.train.items,
        validation_users=split.validation.users,
        validation_targets=split.validation.targets,
        history_users=split.test.users[histories.owners],
        history_items=histories.items,
        test_users=split.test.users,
    )


def score_peer(split: Split, model: Peer, *, seed: int, epochs: int, python: Path = PYTHON) -> dict[str, Any]:
    """Train one peer and find where the test targets stand in its lists of ten.

    Returns places (float64, one per test case), config, versions, validation ([epoch, NDCG@10] pairs) and seconds.
    Raises ConfigError without the environment, ArtefactError with the last words of a run that failed.
    """
    if not python.exists():
        make = f"python -m venv {python.parent.parent} && {python.parent}/pip install -r {SCRIPT.parent}/rectools.txt"
        raise ConfigError(f"{python}: RecTools' environment is not there; run: {make}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(split, folder / "events.npz")
        command = [str(python), str(SCRIPT), name, "--model", model, "--seed", str(seed), "--epochs", str(epochs)]
        environment = os.environ | KEEP_FREED_MEMORY
        run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if run.returncode != 0:
            raise ArtefactError(f"{model} of RecTools failed: {(run.stderr.strip() or 'no word').splitlines()[-1]}")
        report: dict[str, Any] = json.loads((folder / "lists.json").read_bytes())
    return {"places": places_of_lists(np.array(report.pop("lists")), split.test), **report}
