"""Clients of HTTP/2 that are not gRPC's core against the ``http2`` transport; each test needs its tool."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from http2_echo import echoing

SUPPORT = Path(__file__).parents[1] / "support"


async def output_of(*command: str) -> str:
    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        printed, _ = await running.communicate()
    assert running.returncode == 0
    return printed.decode()


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
async def test_node_makes_calls_and_streams_through_small_windows() -> None:
    async with echoing(max_concurrent_streams=1_024) as echo:
        printed = await output_of("node", str(SUPPORT / "http2_client.mjs"), echo.address, "1000", "3000000")
    found: dict[str, Any] = json.loads(printed)
    assert {(each["status"], each["same"], each["reset"]) for each in found["small"]} == {("0", True, 0)}
    for name in ("large", "chat"):
        assert (found[name]["status"], found[name]["same"], found[name]["reset"]) == ("0", True, 0)
    assert found["unknown"]["status"] == "12"


@pytest.mark.skipif(shutil.which("nghttp") is None, reason="nghttp2's client is not installed")
async def test_nghttp_gets_an_answer_with_its_trailer(tmp_path: Path) -> None:
    sent = tmp_path / "message"
    sent.write_bytes(b"\0\0\0\0\x08question")
    asked = ["-v", "-H", ":method: POST", "-H", "content-type: application/grpc", "-d", str(sent)]
    async with echoing() as echo:
        printed = await output_of("nghttp", *asked, f"http://{echo.address}/test.Service/Taken")
    assert "question" in printed
    assert "grpc-status: 0" in printed
