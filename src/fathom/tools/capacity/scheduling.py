"""What a machine does with a core beside a server's work: who has to wait for it, and how often it is taken away."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread

import numpy as np

from fathom.local import on_core

#: A loop that reads the clock was interrupted where it took longer than this; how long it runs, each time.
STALL_S, LOOP_S = 1e-4, 1.5
#: It rests in between, as a server does: the kernel takes the core less often from what does not always want it.
WORK_S, REST_S = 2e-3, 1e-3
#: Times that a thread is woken, what it then does, as an event loop reads a request, and the longest pause in between.
WAKES, READ_S, PAUSE_S = 400, 2e-4, 4e-3
#: Works and rests as an engine under load does, until its input ends.
_ENGINE = """
import select, sys, time
print(flush=True)
while not select.select([sys.stdin], [], [], 3e-4)[0]:
    end = time.perf_counter() + 1e-3
    while time.perf_counter() < end:
        pass
"""


def stalls(core: int) -> tuple[list[float], float]:
    """Seconds of every interruption of a loop on a core where nothing else has work; and of the loop's work."""
    found, worked_s = [], 0.0
    with on_core(core):
        end_s = time.perf_counter() + LOOP_S
        while (begin_s := time.perf_counter()) < end_s:
            last_s = now_s = begin_s
            while now_s - begin_s < WORK_S:
                now_s = time.perf_counter()
                if now_s - last_s > STALL_S:
                    found.append(now_s - last_s)
                last_s = now_s
            worked_s += now_s - begin_s
            time.sleep(REST_S)
    return found, worked_s - sum(found)


def wake_delays(core: int, other: int) -> list[float]:
    """Seconds until a thread that is woken from the ``other`` core runs, on a core where something else works."""
    with on_core(core), subprocess.Popen([sys.executable, "-c", _ENGINE], stdin=-1, stdout=-1) as engine:
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdout.readline()
        reading, writing = os.pipe()
        woken = Thread(target=_wake, args=(other, lambda: os.write(writing, np.float64(time.perf_counter()).tobytes())))
        woken.start()
        try:
            found = []
            for _ in range(WAKES):
                (sent_s,) = np.frombuffer(os.read(reading, 8))
                now_s = time.perf_counter()
                found.append(max(0.0, now_s - float(sent_s)))
                while time.perf_counter() < now_s + READ_S:
                    pass
        finally:
            woken.join()
            os.close(reading)
            os.close(writing)
            engine.stdin.close()
    return found


def _wake(core: int, send: Callable[[], object]) -> None:
    pauses_s = np.random.default_rng(0).uniform(0, PAUSE_S, WAKES)
    with on_core(core):
        for pause_s in pauses_s.tolist():
            time.sleep(pause_s)
            send()
