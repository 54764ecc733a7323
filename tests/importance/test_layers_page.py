"""What docs/layers.md shows does what it says."""

import re
from pathlib import Path

import pytest

from fathom.importance.analyzer import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


def test_the_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    assert (tmp_path / "model.onnx").is_file()
    assert "('blocks." in capsys.readouterr().out


def test_every_task_is_in_the_table() -> None:
    table = PAGE.read_text()
    assert all(f"`{task.value}`" in table for task in TASKS)
