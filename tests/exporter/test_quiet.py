"""Only what is known to be harmless is silenced."""

import warnings

import pytest

from fathom.exporter.engines.quiet import quiet_exporter


def test_a_warning_that_nobody_knows_still_shows() -> None:
    with pytest.warns(UserWarning, match="something new"), quiet_exporter():
        warnings.warn("something new", UserWarning, stacklevel=1)


def test_the_known_warnings_are_silent() -> None:
    with quiet_exporter():
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn(
            "# The axis name: batch will not be used, since it shares the same shape constraints with another axis",
            UserWarning,
            stacklevel=1,
        )
