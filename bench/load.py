"""The clients, in a separate process: streaming requests in a closed loop over `/v1/completions`.

`python -m bench.load` reads one plan (JSON) from stdin and writes what it saw to stdout. While
bytes come in they are only stamped with the time; they are read afterwards, as client and server
share the cores.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.stats import percentile
from bench.workload import Ask

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as its client saw it: seconds to the first text, seconds between texts,
    and tokens; or an error."""

    ttft: float
    gaps: list[float]
    tokens: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement: wall-clock seconds from the first request to the last byte,
    and every answer."""

    seconds: float
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def errors(self) -> list[str]:
        return [answer.error for answer in self.answers if answer.error]

    def figures(self) -> dict[str, float]:
        """Tokens per second; time to first token and gap between texts in milliseconds,
        p50 and p99."""
        good = [answer for answer in self.answers if not answer.error]
        first = [1000 * answer.ttft for answer in good]
        gaps = [1000 * gap for answer in good for gap in answer.gaps]
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "ttft_p50_ms": percentile(first, 50),
            "ttft_p99_ms": percentile(first, 99),
            "itl_p50_ms": percentile(gaps, 50),
            "itl_p99_ms": percentile(gaps, 99),
        }


def run(
    url: str,
    model: str,
    clients: int,
    asks: Sequence[Ask],
    asks_for: Mapping[str, Any] | None = None,
) -> Load:
    """Let `clients` clients answer all of `asks`,
    each taking the next one when its last is answered. `asks_for`: further fields of each request.

    Raises RuntimeError when requests failed or were answered short:
    such a measurement compares nothing.
    """
    plan = {
        "url": url, "model": model, "clients": clients, "asks": [ask.as_json() for ask in asks],
        "asks_for": dict(asks_for or {}),
    }  # fmt: skip
    command = [sys.executable, "-m", "bench.load"]
    done = subprocess.run(
        command, input=json.dumps(plan), text=True, stdout=subprocess.PIPE, cwd=ROOT, check=True
    )
    seen = json.loads(done.stdout)
    load = Load(seen["seconds"], [Answer(**answer) for answer in seen["answers"]])
    if load.errors:
        raise RuntimeError(
            f"{len(load.errors)} of {len(asks)} requests failed, the first with: {load.errors[0]}"
        )
    return load


async def _all(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out a plan, and return the result for `run`."""
    asks = iter(plan["asks"])
    answers: list[dict[str, Any]] = []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    # llama.cpp closes a connection whose stream has ended, just when the next request may be written.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def client() -> None:
            for ask in asks:
                fields = {"model": ask["model"] or plan["model"], **plan["asks_for"]}
                answers.append(await _one(session, plan["url"], ask, fields))

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(plan["clients"])))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "answers": [_read(*answer.values()) for answer in answers]}


async def _one(
    session: aiohttp.ClientSession, url: str, ask: dict[str, Any], fields: dict[str, Any]
) -> dict[str, Any]:
    body = {
        **fields,
        "prompt": ask["prompt"],
        "max_tokens": ask["max_tokens"],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    pieces: list[tuple[float, bytes]] = []
    error = ""
    started = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            async for piece in response.content.iter_any():
                pieces.append((time.perf_counter(), piece))
            if response.status != 200:
                error = f"{response.status}: {b''.join(piece for _, piece in pieces)[:300]!r}"
    except (aiohttp.ClientError, TimeoutError, OSError) as fault:
        error = f"{type(fault).__name__}: {fault}"
    return {"started": started, "pieces": pieces, "max_tokens": ask["max_tokens"], "error": error}


def _read(
    started: float, pieces: list[tuple[float, bytes]], max_tokens: int, error: str
) -> dict[str, Any]:
    """The answer in what came in.
    Every server must have made exactly `max_tokens`, or the rates compare nothing."""
    stamps: list[float] = []
    tokens: int | None = None
    for stamp, event in events(pieces):
        error = error or str(event.get("error") or "")
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if any(choice.get("text") for choice in event.get("choices") or ()):
            stamps.append(stamp)
    if not error and not stamps:
        error = "no text came"
    if not error and tokens not in (None, max_tokens):
        error = f"{tokens} tokens instead of {max_tokens}"
    gaps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    return {
        "ttft": stamps[0] - started if stamps else 0.0,
        "gaps": gaps,
        "tokens": tokens or max_tokens,
        "error": error,
    }


def events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Server-sent events, each with the time at which its last byte came."""
    rest = b""
    for stamp, piece in pieces:
        *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            data = event.strip().removeprefix(b"data:").strip()
            if data.startswith(b"{"):
                yield stamp, json.loads(data)


def main() -> None:
    """The process that `run` starts."""
    print(json.dumps(asyncio.run(_all(json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
