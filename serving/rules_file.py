"""The server's own rules: a YAML file of block lists and default rules, for all bundles or for one by name."""

from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError

from fathom.edge_profiles.document import read_document, short
from fathom.errors import ConfigError, InvalidRequestError
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.serving.requested_rules import ServerRules, check_rules

_KEYS = ("block_lists", "default")


def load_rules(path: Path | None, bundle: str) -> ServerRules:
    """What a file says of a bundle; raises ConfigError, in one line, for whatever cannot be in it."""
    if path is None:
        return ServerRules()
    document = read_document(path, kind="rules file", empty_ok=True)
    if document.problems:
        line, what = min(document.problems)
        raise ConfigError(f"{path}:{line}: {what}")
    values = dict(document.values or {})
    bundles = _mapping(values.pop("bundles", None), f"{path}: bundles")
    every = _part(values, str(path))
    # All are checked, so that a mistake shows before the bundle that it is about is published.
    parts = {name: _part(_mapping(each, f"{path}: {name}"), f"{path}: {name}") for name, each in bundles.items()}
    own = parts.get(bundle, ServerRules())
    return ServerRules({**every.block_lists, **own.block_lists}, every.default if own.default is None else own.default)


def _part(values: dict[str, Any], where: str) -> ServerRules:
    unknown = [key for key in values if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{where}: unknown key {short(unknown[0])}; there are {', '.join(_KEYS)}")
    lists = _mapping(values.get("block_lists"), f"{where}: block_lists")
    for name, ids in lists.items():
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise ConfigError(
                f"{where}: block list {short(name)} is no list of ids; put ids that look like numbers in quotes"
            )
    rules = None
    if "default" in values:
        try:
            rules = ParseDict(_mapping(values["default"], f"{where}: default"), pb.Rules())
            check_rules(rules)
        except (ParseError, InvalidRequestError) as error:
            raise ConfigError(f"{where}: default: {str(error).splitlines()[0]}") from None
    return ServerRules(lists, rules)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{where}: {short(value)} is no mapping of names")
    return value
