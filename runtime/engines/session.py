"""Opens onnxruntime's sessions the one way that a server wants them."""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fathom import installing
from fathom.errors import BundleError, ConfigError, brief

if TYPE_CHECKING:
    import onnxruntime

#: Where a session computes.
Device = Literal["cpu", "cuda"]

_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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


def open_session(
    engine: bytes, name: object, threads: int, device: Device = "cpu", *, captured: bool = False
) -> "onnxruntime.InferenceSession":
    """One engine file, with so many threads inside a run; raises BundleError for one that onnxruntime refuses.

    ``name``: what an error calls it.
    ``captured``: with a CUDA graph for every graph id that a run names. Raises ConfigError where the device is not to
    be had.
    """
    import onnxruntime

    _share_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning threads hold a core for a second after each run. Patterns are stored per shape, and ours vary.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 4 if captured else 3  # that it cannot be captured is an error of the session too
    provider = _PROVIDERS[device]
    settings: dict[str, Any] = {}
    if device == "cuda":
        if not offers_cuda():
            raise ConfigError(f"the installed onnxruntime has no CUDA provider; {installing('gpu')}")
        # TF32 keeps ten bits of a product's inputs: an error of .0005 where fp32 has .0000003.
        settings = {"enable_cuda_graph": str(int(captured)), "use_tf32": "0"}
    try:
        # Falling back would try the same once more, and print that it does.
        session = onnxruntime.InferenceSession(engine, options, providers=[(provider, settings)], enable_fallback=0)
    except Exception as error:  # onnxruntime's own classes have no common base but this one
        text = brief(error, 120)
        raise BundleError(f"{name}: onnxruntime refuses this engine: {text}; export the bundle again") from error
    # Asked for is not got: where a provider cannot load, onnxruntime takes another one and only logs it.
    if session.get_providers()[0] != provider:
        raise ConfigError(f"{name}: onnxruntime runs on {session.get_providers()} where {provider} was requested")
    return session
