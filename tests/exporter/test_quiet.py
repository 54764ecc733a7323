"""Only what is known to be harmless is silenced."""

import warnings
from unittest.mock import Mock

import pytest
import torch
from torch.onnx._internal.exporter import _registration

from fathom.exporter.engines import quiet
from fathom.exporter.engines.quiet import one_registry, quiet_exporter


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


def test_operators_are_looked_up_once_and_exports_do_not_see_what_others_put_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quiet, "_registries", {})
    looked_up = Mock(wraps=_registration._torchlib_registry.get_torchlib_ops)
    monkeypatch.setattr(_registration._torchlib_registry, "get_torchlib_ops", looked_up)
    before = vars(_registration.ONNXRegistry)["from_torchlib"]
    with one_registry():
        first = _registration.ONNXRegistry.from_torchlib(opset_version=18)
        abs_ = torch.ops.aten.abs.default
        known = len(first.get_decomps(abs_))
        first.register_op(abs_, lambda value: value)
        second = _registration.ONNXRegistry().from_torchlib(opset_version=18)
    assert looked_up.call_count == 1
    assert second.functions.keys() == first.functions.keys()
    assert len(first.get_decomps(abs_)) == known + 1
    assert len(second.get_decomps(abs_)) == known > 0
    assert second.opset_version == 18
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is before
