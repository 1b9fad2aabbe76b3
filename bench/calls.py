"""The clients of the gateway's benchmark:
whole answers in a closed loop over kept connections, on plain sockets.

`python -m bench.calls` reads a plan (JSON) from stdin and writes the latencies to stdout. A client
library would cost more than the gateway: this one sends prepared bytes and looks for nothing but
the end of the answer.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from bench.stats import percentile

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Calls:
    """One measurement. Latencies in seconds, from the first byte sent to the last byte received."""

    seconds: float
    latencies: list[float]

    def figures(self) -> dict[str, float]:
        """Requests per second, and latencies in milliseconds."""
        milliseconds = [1000 * latency for latency in self.latencies]
        return {
            "requests_per_second": len(milliseconds) / self.seconds,
            "latency_p50_ms": percentile(milliseconds, 50),
            "latency_p99_ms": percentile(milliseconds, 99),
        }


def run(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str], clients: int, seconds: float
) -> Calls:
    """Measure in another process. Raises RuntimeError if any answer is not a 200."""
    plan = {
        "url": url,
        "body": dict(body),
        "headers": dict(headers),
        "clients": clients,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.calls"],
        input=json.dumps(plan), capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip()[-400:] or f"the clients ended with {done.returncode}"
        )
    seen = json.loads(done.stdout)
    return Calls(seen["seconds"], seen["latencies"])


class Client(asyncio.Protocol):
    """One connection: sends the next request when the last one is answered."""

    def __init__(
        self, request: bytes, until: float, latencies: list[float], ended: asyncio.Future[None]
    ) -> None:
        self._request = request
        self._until = until
        self._latencies = latencies
        self._ended = ended
        self._buffer = b""
        self._missing: int | None = None
        """Bytes of the answer that are still missing; None while its head is incomplete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance.
        self._send()

    def data_received(self, data: bytes) -> None:
        if self._missing is None:
            self._buffer += data
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._end(RuntimeError(f"not a 200: {self._buffer[:300].decode(errors='replace')}"))
                return
            self._missing = _length(head) - len(rest)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._latencies.append(time.perf_counter() - self._began)
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(RuntimeError(f"the server closed the connection: {exc}"))

    def _send(self) -> None:
        self._began = time.perf_counter()
        if self._began > self._until:
            self._end(None)
            return
        self._buffer = b""
        self._missing = None
        self._transport.write(self._request)

    def _end(self, fault: Exception | None) -> None:
        self._transport.close()
        if self._ended.done():
            return
        if fault:
            self._ended.set_exception(fault)
        else:
            self._ended.set_result(None)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("the answer does not say how long it is")


def request_bytes(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    """The bytes of a POST request."""
    address = urlsplit(url)
    content = json.dumps(body).encode()
    lines = [
        f"POST {address.path} HTTP/1.1",
        f"Host: {address.netloc}",
        "Content-Type: application/json",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content


async def measure(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str], clients: int, seconds: float
) -> Calls:
    """Run all clients until the time is over."""
    loop = asyncio.get_running_loop()
    address = urlsplit(url)
    request = request_bytes(url, body, headers)
    latencies = list[float]()
    began = time.perf_counter()
    ends = []
    for _ in range(clients):
        ended = loop.create_future()
        ends.append(ended)
        await loop.create_connection(
            lambda ended=ended: Client(request, began + seconds, latencies, ended),  # type: ignore[misc]
            address.hostname or "",
            address.port or 80,
        )
    await asyncio.gather(*ends)
    return Calls(time.perf_counter() - began, latencies)


def main() -> None:
    """Read the plan, measure, and write the results."""
    import uvloop

    plan = json.load(sys.stdin)
    seen = uvloop.run(measure(**plan))
    json.dump({"seconds": seen.seconds, "latencies": seen.latencies}, sys.stdout)


if __name__ == "__main__":
    main()
