"""Keeps what torch's exporter says to its own developers off the user's terminal, and nothing else."""

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
