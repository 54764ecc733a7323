"""Methods by name: ours, a plug-in's, and the mistakes one can make."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from fathom.errors import ConfigError
from fathom.importance import methods
from fathom.importance.methods.fisher import Fisher
from fathom.importance.registry import GROUP, load_methods, method_names

OURS = ("ablation", "block_influence", "fisher", "gradient")


def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, code: str = "") -> None:
    """Install a package of one module, as pip would leave it: a module and a dist-info folder."""
    info = folder / "fathom_plugin_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fathom-plugin-example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fathom.importance]\n{entry}\n")
    (folder / "fathom_plugin_example.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "fathom_plugin_example", raising=False)


def test_all_stands_for_every_method_and_names_keep_their_order() -> None:
    assert set(OURS) <= set(method_names())
    assert tuple(load_methods(["all"])) == method_names()
    methods = load_methods(["gradient", "fisher", "gradient"])
    assert list(methods) == ["gradient", "fisher"]
    assert isinstance(methods["fisher"], Fisher)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown importance method 'fischer'; did you mean fisher\? known: .*gradient"
    ):
        load_methods(["fischer"])
    with pytest.raises(ConfigError, match=r"^unknown importance method 'zzz'; known: ablation"):
        load_methods(["zzz"])
    with pytest.raises(ConfigError, match="no importance method was named; known: ablation"):
        load_methods([])


def test_a_plug_in_is_found_through_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "class Constant:\n    def scores(self, model, batches, generator):\n        return None\n"
    plug_in(tmp_path, monkeypatch, "constant = fathom_plugin_example:Constant", code)
    assert "constant" in method_names()
    assert list(load_methods(["constant"])) == ["constant"]


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("broken = fathom_plugin_example:Missing", "", "cannot be loaded: .*Missing"),
        ("broken = fathom_plugin_example:X", "import not_installed_anywhere", "cannot be loaded: No module named"),
        ("broken = fathom_plugin_example:X", "class X: pass", r"has no scores\(model, batches, generator\)"),
    ],
)
def test_a_broken_plug_in_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, code: str, message: str
) -> None:
    plug_in(tmp_path, monkeypatch, entry, code)
    with pytest.raises(ConfigError, match=rf"^importance method 'broken' \(fathom_plugin_example:\w+\) {message}"):
        load_methods(["broken"])


def test_a_name_that_two_packages_claim_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path, monkeypatch, "fisher = fathom_plugin_example:Other")
    with pytest.raises(
        ConfigError, match=r"'fisher' is installed twice: fathom.importance.methods.fisher:Fisher, fathom_plugin"
    ):
        load_methods(["fisher"])


def test_every_built_in_method_is_registered_under_its_files_name() -> None:
    built_in = [entry for entry in entry_points(group=GROUP) if entry.value.startswith("fathom.")]
    assert {entry.module for entry in built_in} == {f"fathom.importance.methods.{entry.name}" for entry in built_in}
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__"}
    assert {entry.name for entry in built_in} == files
