"""A Triton model (Python backend): one engine file in onnxruntime. Copied into a repository by ``triton.py``."""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # a part of Triton

from fathom.runtime.engines.segment import Segment


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._segment = Segment(path.read_bytes(), path, 1)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Only the outputs that a request asks for."""
        responses = []
        for request in requests:
            feeds = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._segment.inputs}
            wanted = list(request.requested_output_names())
            found = self._segment.run(wanted, feeds)
            tensors = [triton.Tensor(name, value) for name, value in zip(wanted, found, strict=True)]
            responses.append(triton.InferenceResponse(tensors))
        return responses
