"""Opens onnxruntime's sessions the one way that a server wants them."""

import base64
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fathom import installing
from fathom.errors import BundleError, ConfigError, brief

if TYPE_CHECKING:
    import onnxruntime

#: Where a session's values lie.
Device = Literal["cpu", "cuda"]
#: What computes them.
Provider = Literal["cpu", "cuda", "tensorrt"]

_PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# y = Identity(x) over one float, opset 18: the smallest model that a provider must accept.
_IDENTITY = "CAkSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEg=="


@cache
def _share_memory() -> None:
    """One arena for the intermediate results of all sessions: an engine runs one of them at a time."""
    import onnxruntime

    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    as_by_default = onnxruntime.OrtArenaCfg(0, -1, -1, -1)
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kinds), as_by_default)


@cache
def offers_cuda() -> bool:
    """Whether the installed onnxruntime has a CUDA provider; that says nothing of the machine."""
    import onnxruntime

    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return False
    onnxruntime.set_default_logger_severity(3)  # it warns with every session that there are no plug-ins
    onnxruntime.preload_dlls()  # those of the packages that the extra brings
    return True


def starts(name: str) -> bool:
    """Whether a session on an execution provider of onnxruntime, by its name there, really runs on it."""
    import onnxruntime

    offers_cuda()
    if name not in onnxruntime.get_available_providers():
        return False
    try:
        with redirect_stdout(io.StringIO()):  # onnxruntime prints what it cannot load
            session = onnxruntime.InferenceSession(base64.b64decode(_IDENTITY), providers=[name])
    except Exception:  # onnxruntime's own classes have no common base but this one
        return False
    return bool(session.get_providers()[0] == name)


def require_tensorrt() -> None:
    """Raise ConfigError unless onnxruntime's TensorRT provider runs here: where it cannot, it takes another one."""
    import onnxruntime

    if _PROVIDERS["tensorrt"] not in onnxruntime.get_available_providers():
        raise ConfigError(f"the installed onnxruntime has no TensorRT provider; {installing('gpu')}")
    offers_cuda()
    onnxruntime.set_default_logger_severity(4)  # the error below says it in one line
    runs = starts(_PROVIDERS["tensorrt"])
    onnxruntime.set_default_logger_severity(3)
    if not runs:
        raise ConfigError("onnxruntime's TensorRT provider does not start here: it needs TensorRT and a GPU")


def open_session(
    engine: bytes,
    name: object,
    threads: int,
    device: Provider = "cpu",
    *,
    captured: bool = False,
    recurring: bool = False,
    tensorrt: Mapping[str, str] | None = None,
) -> "onnxruntime.InferenceSession":
    """One engine file, with so many threads inside a run; raises BundleError for one that onnxruntime refuses.

    ``name``: what an error calls it.
    ``captured``: with a CUDA graph for every graph id that a run names. ``recurring``: its inputs are small and nearly
    always of the same shapes, so that memory is planned once for each. ``tensorrt``: options of that provider, which
    leaves to CUDA what it cannot do. Raises ConfigError where the device is not to be had.
    """
    import onnxruntime

    _share_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning threads hold a core for a second after each run.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan is faster than asking the arena for every value, but takes the room of a large batch in one piece.
    options.enable_mem_pattern = recurring
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 4 if captured else 3  # that it cannot be captured is an error of the session too
    provider = _PROVIDERS[device]
    providers: list[tuple[str, dict[str, Any]]] = [(provider, {})]
    if device != "cpu":
        if not offers_cuda():
            raise ConfigError(f"the installed onnxruntime has no CUDA provider; {installing('gpu')}")
        # TF32 keeps ten bits of a product's inputs: an error of .0005 where fp32 has .0000003.
        providers = [(_PROVIDERS["cuda"], {"enable_cuda_graph": str(int(captured)), "use_tf32": "0"})]
    if device == "tensorrt":
        providers.insert(0, (provider, dict(tensorrt or {})))
    try:
        # Falling back would try the same once more, and print that it does.
        session = onnxruntime.InferenceSession(engine, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's own classes have no common base but this one
        text = brief(error, 120)
        raise BundleError(f"{name}: onnxruntime refuses this engine: {text}; export the bundle again") from error
    # It keeps the file beside what it has made of it, only to open the session again.
    session._model_bytes = None
    # Asked for is not got: where a provider cannot load, onnxruntime takes another one and only logs it.
    if session.get_providers()[0] != provider:
        raise ConfigError(f"{name}: onnxruntime runs on {session.get_providers()} where {provider} was requested")
    return session
