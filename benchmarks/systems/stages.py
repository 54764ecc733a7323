"""Where the processor time of a request goes, by stage, in this version of the server and in another one.

    git worktree add build/before COMMIT
The load is that of ``front``: depth 4, new histories of 50, 32 in flight. Each version runs in turns, every time in a
new process; py-spy looks at its threads while the kernel counts their time. A stage is what the innermost frame of ours
belongs to, so what gRPC and the event loop do for themselves is a stage too. Needs the extra bench.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from fathom.benchmarks.http2_load import closed
from fathom.benchmarks.load import HISTORY, made_up
from fathom.benchmarks.markdown import table
from fathom.benchmarks.registry import Benchmark, Run, StoredRun, of_runs
from fathom.benchmarks.server import StartedServer, catalogue_ids, started, threads_of
from fathom.benchmarks.systems import front
from fathom.errors import MissingExtraError

DEPTH = front.DEPTHS[0]
SECONDS = 6.0
ROUNDS = 5
SAMPLES_PER_S = 200

GRPC, POLLER, GRPC_THREADS = "gRPC and the event loop", "poll gRPC's events", "gRPC's own threads"

#: Depth 0, and what counting adds to the scores of the other depths.
COUNTING = ("counting.py", "live_counts.py", "depth_zero.py")

#: Stage -> what the innermost frame of ours is called, as py-spy writes it; the first that fits counts.
LOOP_STAGES = {
    GRPC: ("serving/transport/",),
    "read the message": ("request_decoder.py", "requested_filter.py", "client_of", "decoder"),
    "choose the depth": ("selector/", "Pipeline._choose", "estimates.py", "Batcher.queue_s", "cost.py"),
    "wait in a lane": ("batcher.py", "lanes.py", "lane.py", "shares.py"),
    "prefix cache": ("prefix_cache.py",),
    "word the answer": ("response_encoder.py",),
    "metrics": ("metrics.py", "prometheus_client"),
    "counting": COUNTING,
    "the rest of the way": (
        "fathom/serving/guard.py",
        "recommend.py",
        "service.py",
        "gate.py",
        "pipeline.py",
        "retriever.py",
    ),
}
ENGINE_STAGES = {
    "engine": ("engines/",),
    "search": ("retriever.py",),
    "counting": COUNTING,
    "batches": ("batcher.py", "lanes.py", "lane.py", "runner.py", "metrics.py"),
}


def stage_of(frames: list[str], stages: dict[str, tuple[str, ...]], otherwise: str) -> str:
    """The stage of a stack, outermost frame first."""
    for frame in reversed(frames):
        for stage, marks in stages.items():
            if any(mark in frame for mark in marks):
                return stage
    return otherwise


def split(samples: str, parts_us: Mapping[str, float]) -> dict[str, float]:
    """Microseconds of each stage, from py-spy's raw stacks and what the kernel counted of each of ``front.PARTS``."""
    loop: Counter[str] = Counter()
    engine: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if "MainThread" in thread:
            loop[stage_of(frames, LOOP_STAGES, GRPC)] += int(count)
        elif "fathom-engine" in thread and "Condition.wait" not in stack:
            engine[stage_of(frames, ENGINE_STAGES, "batches")] += int(count)
    spent: dict[str, float] = defaultdict(float)
    for part, counts, otherwise in (("loop", loop, GRPC), ("engine", engine, "batches")):
        for stage, sampled in (counts or {otherwise: 1}).items():
            spent[stage] += parts_us[part] * sampled / max(1, counts.total())
    return {**spent, POLLER: parts_us["poller"], GRPC_THREADS: parts_us["grpc"]}


def py_spy() -> str:
    """Where the program is; raises MissingExtraError without it."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise MissingExtraError("py-spy", "bench")
    return spy


def watch(server: StartedServer, messages: list[bytes], spy: str, seconds: float) -> dict[str, float]:
    """Load it, and split what it spends."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples"
        command = [spy, "record", "--pid", str(server.pid), "--duration", str(int(seconds)), "--format", "raw"]
        command += ["--rate", str(SAMPLES_PER_S), "--threads", "--nonblocking", "--output", str(out)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watching:
            before = threads_of(server.pid)
            report = front.checked(closed(server.address, messages, front.IN_FLIGHT, 1, seconds + 1), "the server")
            spent = front.split(before, threads_of(server.pid), server.pid, engine=True)
            watching.wait()
        count = len(report.due_s)
        return split(out.read_text(), {part: cpu_s / count * 1e6 for part, cpu_s in spent.items()})


def spent_by(bundle: Path, sources: dict[str, Path | None], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians over rounds, each version in turn; ``sources``: version -> its ``src`` folder, None for this one."""
    spy = py_spy()
    messages = made_up(catalogue_ids(bundle), DEPTH, int(front.MOST_PER_S * (seconds + 1)), "stages")
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in sources}
    for turn in range(rounds):
        for name in sorted(sources, reverse=bool(turn % 2)):
            source = sources[name]
            if source is not None:
                os.environ["PYTHONPATH"] = str(source.resolve())
            with started(bundle) as server:
                os.environ.pop("PYTHONPATH", None)
                for stage, spent in watch(server, messages, spy, seconds).items():
                    found[name][stage].append(spent)
    return {name: {stage: round(median(spent), 1) for stage, spent in each.items()} for name, each in found.items()}


def measure(options: Namespace) -> Iterator[Run]:
    """This version, and the one before where it is given."""
    sources: dict[str, Path | None] = {"now": None}
    commit = None
    if options.before:
        sources["before"] = Path(options.before)
        asked = ["git", "-C", options.before, "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    spent = spent_by(options.bundle, sources, options.rounds, options.seconds)
    config: dict[str, Any] = {
        "bundle": options.bundle.name,
        "depth": DEPTH,
        "history": HISTORY,
        "concurrency": front.IN_FLIGHT,
    }
    yield Run(config | {"rounds": options.rounds, "seconds": options.seconds, "before": commit}, {"cpu_us": spent})


def render(run: StoredRun) -> str:
    """A row per stage."""
    spent, config = run["result"]["cpu_us"], run["config"]
    versions = sorted(spent)
    stages = [*spent["now"], *(stage for stage in spent[versions[0]] if stage not in spent["now"])]
    rows = [[stage, *(f"{spent[version].get(stage, 0.0):.0f}" for version in versions)] for stage in stages]
    rows.append(["all", *(f"{sum(spent[version].values()):.0f}" for version in versions)])
    before = f" Before is commit {config['before'][:7]}." if config["before"] else ""
    return "\n\n".join(
        [
            "## Where the processor time of a request goes",
            f"Depth {config['depth']}, history {config['history']}, {config['concurrency']} in flight: microseconds of"
            f" processor time per request by stage.{before}",
            table(["stage", *versions], rows),
        ]
    )


BENCHMARK = Benchmark(
    __doc__,
    "2 min, py-spy",
    {"bundle": Path, "--before": "", "--rounds": ROUNDS, "--seconds": SECONDS},
    measure,
    of_runs(render, "stages"),
)
