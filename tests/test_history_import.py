"""`fathom history import`: a dataset becomes the histories of a store."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from fathom.serving.history import Event, Retention, open_history
from fathom.training.dataset import Dataset


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fathom", "history", "import", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def read(setting: str, users: tuple[str, ...]) -> list[list[Event]]:
    async def all_of_them() -> list[list[Event]]:
        store = open_history(setting, Retention())
        assert store is not None
        found = [await store.read(user) for user in users]
        await store.close()
        return found

    return asyncio.run(all_of_them())


def test_every_user_gets_the_events_of_the_dataset_once(tiny_build: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(tiny_build / "dataset")
    setting = f"sqlite:{tmp_path / 'history.db'}"
    done = run(tiny_build / "dataset", "--to", setting, "--json")
    assert done.returncode == 0, done.stderr
    events = len(dataset.sequences.items)
    assert json.loads(done.stdout) == {"users": dataset.n_users, "added": events}
    assert run(tiny_build / "dataset", "--to", setting).stdout == f"0 new events of {dataset.n_users} users\n"
    for user, found in enumerate(read(setting, dataset.user_ids)):
        times = dataset.sequences.times(user)
        assert times is not None
        assert [event.timestamp for event in found] == times.tolist()
        assert [event.item_id for event in found] == [dataset.item_ids[item] for item in dataset.sequences[user]]


def test_only_the_newest_events_are_imported(tiny_build: Path, tmp_path: Path) -> None:
    dataset = Dataset.load(tiny_build / "dataset")
    setting = f"sqlite:{tmp_path / 'history.db'}"
    assert run(tiny_build / "dataset", "--to", setting, "--max-events", 5).returncode == 0
    for user, found in enumerate(read(setting, dataset.user_ids)):
        assert [event.item_id for event in found] == [dataset.item_ids[item] for item in dataset.sequences[user][-5:]]


def test_a_store_that_keeps_nothing_is_refused(tiny_build: Path) -> None:
    done = run(tiny_build / "dataset", "--to", "memory")
    assert done.returncode == 2
    assert "keeps nothing" in done.stderr
