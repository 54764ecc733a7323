"""Keeps what libraries say to their own developers off the user's terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Says that torchvision, which no engine of ours uses, is not installed.
_CHATTY_LOGGER = "torch.onnx._internal.exporter._registration"
#: torch's own use of its own deprecated class.
_OWN_DEPRECATION = r".*isinstance\(treespec, LeafSpec\)"
#: Two inputs share one dynamic axis, which is what we asked for.
_SHARED_AXIS = r"# The axis name: .* will not be used, since it shares the same shape constraints"


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
