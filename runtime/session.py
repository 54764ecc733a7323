"""Opens onnxruntime's sessions the one way that a server wants them."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.errors import BundleError, ConfigError

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "CPUExecutionProvider"


@cache
def _share_memory() -> None:
    """One arena for the intermediate results of all sessions: an engine runs one of them at a time."""
    import onnxruntime

    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    as_by_default = onnxruntime.OrtArenaCfg(0, -1, -1, -1)
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kinds), as_by_default)


def open_session(path: Path, threads: int) -> "onnxruntime.InferenceSession":
    """One file, with so many threads inside a run; raises BundleError for one that onnxruntime refuses."""
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
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's own classes have no common base but this one
        text = str(error).splitlines()[0]
        raise BundleError(f"{path}: onnxruntime refuses this engine: {text}; export the bundle again") from error
    # Asked for is not got: where a provider cannot load, onnxruntime takes another one and only logs it.
    if session.get_providers() != [PROVIDER]:
        raise ConfigError(f"{path}: onnxruntime runs on {session.get_providers()} where {PROVIDER} was asked for")
    return session
