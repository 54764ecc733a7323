"""Where the processor time of a request goes, by stage, in this version of the server and in another one.

    git worktree add build/before COMMIT
    python -m fathom.benchmarks.stages build/ml-100k/bundle --before build/before/src

The load is that of ``grpc_echo``: depth 4, history 50, 32 in flight. Each version runs in turns, every time in a new
process; py-spy looks at its threads while the kernel counts their time. A stage is what the innermost frame of ours
belongs to, so what gRPC and the event loop do for themselves is a stage too. Needs the extra bench. Writes
results/stages.json.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from fathom.benchmarks.grpc_echo import CONCURRENT, DEPTH, HISTORY, Figures, load, make_requests
from fathom.benchmarks.record import run, save_run
from fathom.benchmarks.server_start import Started, started
from fathom.errors import MissingExtraError

SECONDS = 6.0
ROUNDS = 5
SAMPLES_PER_S = 200

#: Stage -> what the innermost frame of ours is called, as py-spy writes it; the first that fits counts.
LOOP_STAGES = {
    "read the message": ("Converter.query", "Converter._history", "Converter._k", "decoder"),
    "choose the depth": ("selector/", "Pipeline._choose", "estimates.py", "Batcher.queue_s", "cost.py"),
    "wait in a lane": ("batcher.py", "lanes.py"),
    "word the answer": ("Converter.response", "_encoded_item"),
    "metrics": ("metrics.py", "prometheus_client"),
    "the rest of the way": (
        "fathom/serving/guard.py",
        "service.py",
        "gate.py",
        "pipeline.py",
        "retriever.py",
        "convert.py",
    ),
}
ENGINE_STAGES = {
    "engine": ("engine.py",),
    "search": ("retriever.py",),
    "batches": ("batcher.py", "lanes.py", "pipeline.py", "metrics.py"),
}
GRPC, GRPC_THREADS = "gRPC and the event loop", "gRPC's own threads"


def stage_of(frames: list[str], stages: dict[str, tuple[str, ...]], otherwise: str) -> str:
    """The stage of a stack, outermost frame first."""
    for frame in reversed(frames):
        for stage, marks in stages.items():
            if any(mark in frame for mark in marks):
                return stage
    return otherwise


def split(samples: str, figures: Figures) -> dict[str, float]:
    """Microseconds of each stage, from py-spy's raw stacks and what the kernel counted of each thread."""
    loop: Counter[str] = Counter()
    engine: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if "MainThread" in thread:
            loop[stage_of(frames, LOOP_STAGES, GRPC)] += int(count)
        elif "fathom-engine" in thread and "Condition.wait" not in stack:
            engine[stage_of(frames, ENGINE_STAGES, "batches")] += int(count)
    spent = {stage: figures.loop_cpu_us * count / loop.total() for stage, count in loop.items()}
    spent |= {stage: figures.second_cpu_us * count / engine.total() for stage, count in engine.items()}
    return spent | {GRPC_THREADS: figures.server_cpu_us - figures.loop_cpu_us - figures.second_cpu_us}


async def watch(server: Started, requests: list[bytes], spy: str, seconds: float) -> dict[str, float]:
    """Load it, and split what it spends."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples"
        command = [spy, "record", "--pid", str(server.pid), "--duration", str(int(seconds)), "--format", "raw"]
        command += ["--rate", str(SAMPLES_PER_S), "--threads", "--nonblocking", "--output", str(out)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watching:
            figures = await load(server.address, server.pid, requests, CONCURRENT, seconds + 1)
            watching.wait()
        return split(out.read_text(), figures)


def measure(bundle: Path, sources: dict[str, Path | None], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians over rounds, each version in turn; ``sources``: version -> its ``src`` folder, None for this one."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise MissingExtraError("py-spy", "bench")
    requests = make_requests(bundle)
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in sources}
    for turn in range(rounds):
        for name in sorted(sources, reverse=bool(turn % 2)):
            source = sources[name]
            if source is not None:
                os.environ["PYTHONPATH"] = str(source.resolve())
            with started(bundle, "--reuse-mb", "0") as server:
                os.environ.pop("PYTHONPATH", None)
                for stage, spent in asyncio.run(watch(server, requests, spy, seconds)).items():
                    found[name][stage].append(spent)
    return {name: {stage: round(median(spent), 1) for stage, spent in each.items()} for name, each in found.items()}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--before", type=Path, help="src folder of another checkout")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    chosen = parser.parse_args()
    sources = {"now": None} | ({"before": chosen.before} if chosen.before else {})
    spent = measure(chosen.bundle, sources, chosen.rounds, chosen.seconds)
    commit = None
    if chosen.before:
        asked = ["git", "-C", str(chosen.before), "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    config: dict[str, Any] = {
        "bundle": chosen.bundle.name,
        "depth": DEPTH,
        "history": HISTORY,
        "concurrency": CONCURRENT,
    }
    config |= {"rounds": chosen.rounds, "seconds": chosen.seconds, "before": commit}
    for stage in sorted({stage for each in spent.values() for stage in each}):
        print(f"{stage:24}", *(f"{name} {each.get(stage, 0.0):7.1f} µs" for name, each in sorted(spent.items())))
    print(f"stored in {save_run('stages', config=config, result={'cpu_us': spent})}")


if __name__ == "__main__":
    run(main)
