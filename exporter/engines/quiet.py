"""Makes ``torch.onnx.export`` quiet and quicker: keeps what libraries tell their own developers off the terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

#: Says that torchvision, which no engine of ours uses, is not installed.
_CHATTY_LOGGER = "torch.onnx._internal.exporter._registration"
#: torch's own use of its own deprecated class.
_OWN_DEPRECATION = r".*isinstance\(treespec, LeafSpec\)"
#: Two inputs share one dynamic axis, which is what we asked for.
_SHARED_AXIS = r"# The axis name: .* will not be used, since it shares the same shape constraints"


#: Registries built so far, by the arguments they were built with.
_registries: dict[object, Any] = {}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence one known log line and two known warnings of ``torch.onnx.export``; any other still shows."""
    logger = logging.getLogger(_CHATTY_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_OWN_DEPRECATION, category=FutureWarning)
            warnings.filterwarnings("ignore", message=_SHARED_AXIS, category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def one_registry() -> Iterator[None]:
    """Let ``torch.onnx.export`` look its operators up once in a process; it does so for every graph, for a second each.

    torch 2.13 offers no public way to do this; a torch without these parts is left alone.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registries: Any = ONNXRegistry
        make = vars(registries)["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def from_torchlib(_: object, *args: Any, **settings: Any) -> Any:
        key = args, tuple(settings.items())
        if key not in _registries:
            _registries[key] = make.__get__(None, registries)(*args, **settings)
        registry = copy(_registries[key])
        # An export adds the operators that it was given, in front.
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    registries.from_torchlib = classmethod(from_torchlib)
    try:
        yield
    finally:
        registries.from_torchlib = make


@contextmanager
def quiet(level: int, ignored: type[Warning] | None = None) -> Iterator[None]:
    """Hold back log lines up to a level, and one class of warnings; a library that sets up the root log is undone."""
    root = logging.getLogger()
    handlers, root_level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(level)
    try:
        with warnings.catch_warnings():
            if ignored is not None:
                warnings.simplefilter("ignore", ignored)
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(root_level)
