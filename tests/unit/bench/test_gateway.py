"""The gateway's benchmark: its targets, its page, and clients that believe only a whole 200."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench import calls, gateway


def row(requests: float, p99: float = 10.0, p50: float = 0.5) -> dict[str, float]:
    return {"requests_per_second": requests, "latency_p50_ms": p50, "latency_p99_ms": p99}


def test_targets_are_judged_by_medians_and_the_peer_by_the_rounds_own_ratios() -> None:
    rows = {
        "guarded@1": [row(100, p50=2.0)],
        "guarded@50": [row(1000), row(2000), row(3000)],
        "litellm@50": [row(50), row(100), row(1000)],
    }
    found = {
        verdict["title"]: (verdict["value"], verdict["met"]) for verdict in gateway.verdicts(rows)
    }
    assert found["guarded@1: p50, ms"] == (2.0, False)
    assert found["guarded@50: requests/s"] == (2000, True)
    assert found["guarded@50 over litellm@50: requests/s"] == (20, True)
    assert not any(title.startswith("cached") for title in found)


def test_the_page_tells_who_is_missing() -> None:
    rows = {"bare@50": [row(5000)], "bare@1": [row(3000)]}
    record = {
        "date": "2026-11-21", "commit": "abc", "machine": {"cpu": "A CPU", "cores": 2, "load_before": 0.1},
        "versions": {}, "rounds": 1, "seconds": 1, "rows": rows, "absent": {"litellm": "no environment"},
        "medians": {key: {name: gateway.value(rows, key, name) for name in gateway.METRICS} for key in rows},
        "targets": gateway.verdicts(rows),
    }  # fmt: skip
    page = gateway.page(record)
    assert "LiteLLM's proxy: one key, mock response is missing: no environment" in page
    assert page.index("| 1 | ours") < page.index("| 50 | ours")


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.001)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"


async def test_an_answer_counts_when_its_last_byte_is_there() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-", b"Length: 4\r\n\r\nab", b"cd") as url:
        seen = await calls.measure(url, {}, {}, clients=2, seconds=0.1)
    assert len(seen.latencies) > 4
    assert min(seen.latencies) > 0.002
    assert seen.figures()["requests_per_second"] > 40


async def test_anything_but_a_200_ends_the_measurement() -> None:
    async with answering(b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n") as url:
        with pytest.raises(RuntimeError, match="429"):
            await calls.measure(url, {}, {}, clients=1, seconds=1)
