"""Any model as ONNX, compared with torch."""

import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fathom.errors import ConfigError, ParityError, brief, optional
from fathom.files import write_bytes
from fathom.importance.inputs import Inputs
from fathom.importance.tasks.interface import all_scores

#: Largest difference between torch and onnxruntime, relative to the largest output.
SAME = 1e-3


class _Named(nn.Module):
    """A model called with its tensors in a fixed order, which gives what a task reads alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], rest: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._names, self._rest = names, rest

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The model's scores, see ``all_scores``."""
        count = len(tensors) - len(self._names)
        named = dict(zip(self._names, tensors[count:], strict=True))
        return tuple(all_scores(self.model(*tensors[:count], **named, **self._rest)).values())


def export_onnx(model: nn.Module, inputs: Inputs, path: Path) -> float:
    """Write a model's scores as one ONNX file with any number of samples; returns the largest difference to torch.

    ``inputs``: an example, whose other axes, as the number of tokens, are those of the file. Inputs of the file are
    named as the model's arguments, ``input`` and ``input_1`` where they are given by place. Raises ConfigError where
    the model cannot be exported, ParityError where onnxruntime gives something else.
    """
    runtime = optional("onnxruntime", "train")
    named = {name: value for name, value in inputs.kwargs.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in inputs.kwargs.items() if name not in named}
    if not all(isinstance(value, Tensor) for value in inputs.args):
        raise ConfigError("arguments that are given by place must be tensors; give the others by name")
    wrapped = _Named(model, tuple(named), rest).eval()
    tensors = (*inputs.args, *named.values())
    names = [*("input" + (f"_{place}" if place else "") for place in range(len(inputs.args))), *named]
    any_number = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        expected = {key: value.numpy(force=True) for key, value in all_scores(inputs.call(wrapped.model)).items()}
    try:
        # What the exporter prints is for its own authors.
        words = StringIO()
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(words), redirect_stderr(words):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                wrapped,
                tensors,
                input_names=names,
                output_names=list(expected),
                dynamic_shapes=(tuple({0: any_number} for _ in tensors),),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        data = program.model_proto.SerializeToString()
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        wanted = {each.name for each in session.get_inputs()}
        feeds = {name: value.numpy(force=True) for name, value in zip(names, tensors, strict=True) if name in wanted}
        found = dict(zip(expected, session.run(list(expected), feeds), strict=True))
    except Exception as error:  # both libraries have many kinds
        raise ConfigError(f"{type(model).__name__} cannot be exported as ONNX: {_line(error)}") from error
    difference = 0.0
    for name, value in expected.items():
        apart = float(np.abs(found[name] - value).max())
        if found[name].shape != value.shape or not apart <= SAME * max(1.0, float(np.abs(value).max())):
            raise ParityError(f"onnxruntime gives other {name} than torch, by up to {apart:.2g}")
        difference = max(difference, apart)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    return difference


def _line(error: Exception) -> str:
    """The first line of what is at its root."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error).strip().splitlines()
    return brief(text[0], 160) if text else type(error).__name__
