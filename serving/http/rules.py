"""Which HTTP requests mean which method: the rules of ``recommender_http.yaml`` (google.api.HttpRule)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

VERBS = ("get", "post", "put", "patch", "delete")
_VARIABLE = re.compile(r"\{(\w+)\}")


class Rule(NamedTuple):
    """``path``: with ``{variables}``, which are fields of the message. ``has_body``: the message is the body."""

    method: str
    verb: str
    path: str
    has_body: bool

    @property
    def route(self) -> str:
        """The path as Starlette routes it; ids may hold slashes."""
        return _VARIABLE.sub(r"{\1:path}", self.path)

    @property
    def variables(self) -> Sequence[str]:
        """The fields that the path gives."""
        return _VARIABLE.findall(self.path)


def http_rules() -> list[Rule]:
    """All rules, in their order."""
    text = files("fathom.protos.fathom.v1").joinpath("recommender_http.yaml").read_text(encoding="utf-8")
    return [rule for each in yaml.safe_load(text)["http"]["rules"] for rule in _bindings(each)]


def _bindings(rule: Mapping[str, Any]) -> Iterator[Rule]:
    method = rule["selector"].rpartition(".")[2]
    for binding in (rule, *rule.get("additional_bindings", ())):
        (verb,) = [each for each in VERBS if each in binding]
        yield Rule(method, verb.upper(), binding[verb], binding.get("body") == "*")
