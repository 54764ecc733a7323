"""docs/operating.md says what the code does."""

import re
from pathlib import Path

import fathom.serving
from fathom.serving.config import ServerSettings
from fathom.serving.metrics import Metrics
from fathom.serving.status import STATUSES

PAGE = (Path(fathom.serving.__path__[0]).resolve().parent / "docs" / "operating.md").read_text()


def test_every_setting_is_on_the_page_and_no_other() -> None:
    table = PAGE.split("## Settings")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(ServerSettings.model_fields)


def test_every_status_is_on_the_page_with_its_error() -> None:
    for kind, code in STATUSES:
        assert f"| {code.name} | {kind.__name__} |" in PAGE


def test_every_metric_is_on_the_page() -> None:
    for family in Metrics().registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        assert f"`{family.name}{suffix}`" in PAGE
