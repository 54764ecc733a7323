"""A server's event loop: the fast one, and a short turn for whoever waits for the interpreter."""

import asyncio
import sys

import pytest

from fathom.serving.loop import SWITCH_INTERVAL_S, run_in_loop


def test_a_server_runs_on_uvloop_and_lets_its_engine_in_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = sys.getswitchinterval(), []

    async def main() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__)
        seen.append(sys.getswitchinterval())

    try:
        run_in_loop(main())
        monkeypatch.setitem(sys.modules, "uvloop", None)
        run_in_loop(main())
    finally:
        sys.setswitchinterval(before)
    assert seen[0].startswith("uvloop")
    assert seen[2].startswith("asyncio")
    assert seen[1] == seen[3] == pytest.approx(SWITCH_INTERVAL_S)
