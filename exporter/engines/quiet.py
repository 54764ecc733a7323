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


#: Of ``one_registry``, by opset.
_registries: dict[int, Any] = {}


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

    torch 2.13 has no public way to; a torch that works in another way is left alone.
    """
    from torch.onnx._internal.exporter import _registration

    registries: Any = getattr(_registration, "ONNXRegistry", None)
    make = vars(registries).get("from_torchlib") if registries else None
    if make is None:
        yield
        return

    def from_torchlib(_: object, opset_version: int) -> Any:
        if opset_version not in _registries:
            _registries[opset_version] = make.__get__(None, registries)(opset_version=opset_version)
        registry = copy(_registries[opset_version])
        # An export puts what it was given of its own in front.
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
