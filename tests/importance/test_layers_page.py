"""What docs/layers.md shows does what it says."""

import re
from pathlib import Path

import pytest

from fathom.importance import registry
from fathom.importance.analyzer import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"


def test_the_examples_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(first, str(PAGE), "exec"), names)
    assert (tmp_path / "model.onnx").is_file()
    assert "('blocks." in capsys.readouterr().out
    try:
        exec(compile(second, str(PAGE), "exec"), names)
    finally:
        registry.remove_method("weight_size")
    assert "{'before': {'among_two': " in capsys.readouterr().out


def test_every_task_is_in_the_table() -> None:
    table = PAGE.read_text()
    assert all(f"`{task.value}`" in table for task in TASKS)
