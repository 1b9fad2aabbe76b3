"""What a streamed token costs the HTTP process,
with the engine on a thread beside it and in a process of its own.

`python bench/costs/streaming.py [--streams 32] [--tokens 300] [--step-milliseconds 10] [--held 0.3]
[--rounds 3]` serves a scripted model whose step takes a fixed time and holds the interpreter for a
part of it, as a small model on a CPU does. The cost is the processor time of the HTTP process's
event loop; of both figures the best round is shown, as whatever else the machine does only ever
adds to the cost.
"""

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "hack"), str(ROOT / "tests")]

from devstack.ports import free_port  # noqa: E402
from llm_runtime import worker  # noqa: E402
from llm_runtime.api.server import make_server  # noqa: E402
from llm_runtime.api.serving import WarmModel  # noqa: E402
from llm_runtime.app import HttpServer, create_app  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.adapters import AdapterTable  # noqa: E402
from llm_runtime.engine.blocks import BlockPool  # noqa: E402
from llm_runtime.engine.limits import RequestLimits  # noqa: E402
from llm_runtime.engine.local import start_local  # noqa: E402
from llm_runtime.engine.model import Model  # noqa: E402
from llm_runtime.engine.process import start_engine  # noqa: E402
from llm_runtime.engine.scheduler import Batch, Scheduler  # noqa: E402
from llm_runtime.engine.sequence import Sampled  # noqa: E402
from unit.runtime.engine.fakes import CharacterVocabulary, ScriptedRunner  # noqa: E402

WAYS = ("thread", "process")
CONFIG = RuntimeConfig(
    model=ModelConfig(name="bench", path="."), engine=EngineConfig(max_batch_size=64)
)


class TimedRunner(ScriptedRunner):
    """A step takes `seconds`, for the share `held` of which no other thread of the process runs
    Python."""

    def __init__(self, seconds: float, held: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._held = held

    def forward(self, batch: Batch) -> list[Sampled]:
        time.sleep(self._seconds * (1 - self._held))
        end = time.perf_counter() + self._seconds * self._held
        while time.perf_counter() < end:
            pass
        return [Sampled(ord("~")) for span in batch.spans if span.samples]


def build(config: RuntimeConfig, folder: Path, *_: object) -> Model:
    """The scripted model; the folder's name carries what the script needs."""
    seconds, held = map(float, folder.name.split(","))
    engine = config.engine
    pool = BlockPool(engine.max_batch_size * BlockPool.needed(engine.max_model_length))
    scheduler = Scheduler(
        pool, engine.max_batch_size, engine.max_batch_tokens, engine.max_queue_length
    )
    limits = RequestLimits(engine.max_model_length, CharacterVocabulary.vocabulary_size)
    return Model(
        scheduler, TimedRunner(seconds, held), CharacterVocabulary(), limits, AdapterTable(1)
    )


def serve(way: str, port: int, script: str) -> None:
    """The server's process."""
    logging.basicConfig(level=logging.ERROR)

    async def load() -> WarmModel:
        if way == "thread":
            engine = start_local(build(CONFIG, Path(script)))
        else:
            engine = await start_engine(CONFIG, Path(script), (sys.executable, __file__, "worker"))
        return WarmModel(engine, engine.codec)

    HttpServer(create_app(make_server(CONFIG, load)), "127.0.0.1", port).run()


class Result(NamedTuple):
    """One round."""

    tokens_per_second: float
    microseconds_per_token: float
    """Processor time of the event loop's thread."""
    events_per_token: float


def measure(way: str, script: str, streams: int, tokens: int, rounds: int) -> Iterator[Result]:
    """Start a server and measure it `rounds` times, after a round that only warms up."""
    with _server(way, script) as (port, process):
        asyncio.run(_round(port, process, 4, 20))
        for _ in range(rounds):
            yield asyncio.run(_round(port, process, streams, tokens))


@contextmanager
def _server(way: str, script: str) -> Iterator[tuple[int, int]]:
    port = free_port()
    server = subprocess.Popen([sys.executable, __file__, "serve", way, str(port), script])
    try:
        asyncio.run(_ready(port))
        yield port, server.pid
    finally:
        server.terminate()
        server.wait()


async def _ready(port: int) -> None:
    async with asyncio.timeout(30):
        while b" 200 " not in (await _answer(port, "GET /readyz"))[:20]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _round(port: int, process: int, streams: int, tokens: int) -> Result:
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": tokens,
        "stream": True,
    }
    cpu = _processor_seconds(process)
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(_answer(port, "POST /v1/chat/completions", body) for _ in range(streams))
    )
    seconds = time.perf_counter() - began
    cpu = _processor_seconds(process) - cpu
    assert all(
        answer.count(b"~") == tokens
        for answer in (part.split(b"\r\n\r\n", 1)[1] for part in answers)
    )
    total = streams * tokens
    return Result(
        total / seconds,
        cpu * 1e6 / total,
        sum(answer.count(b"data: ") for answer in answers) / total,
    )


async def _answer(port: int, request: str, body: object = None) -> bytes:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return b""
    content = json.dumps(body).encode() if body else b""
    head = (
        f"{request} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type:"
        " application/json\r\n"
    )
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = await reader.read()
    writer.close()
    return answer


def _processor_seconds(process: int) -> float:
    """Processor time of the process's first thread, which runs the event loop. See proc(5),
    /proc/pid/schedstat."""
    return int(Path(f"/proc/{process}/task/{process}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/costs/streaming.py", description="What a streamed token costs."
    )
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--step-milliseconds", type=float, default=10.0)
    parser.add_argument(
        "--held", type=float, default=0.3, help="share of a step that holds the interpreter"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    script = f"{options.step_milliseconds / 1000},{options.held}"
    print(
        f"{options.streams} streams of {options.tokens} tokens, steps of"
        f" {options.step_milliseconds:g} ms"
    )
    print(f"{'engine':10} {'tokens/s':>9} {'µs of HTTP/token':>17} {'events/token':>13}")
    for way in WAYS:
        found = list(measure(way, script, options.streams, options.tokens, options.rounds))
        rates, costs, events = zip(*found, strict=True)
        print(f"{way:10} {max(rates):9.0f} {min(costs):17.1f} {statistics.median(events):13.2f}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", way, port, script]:
            serve(way, int(port), script)
        case ["worker", *rest]:
            sys.argv[1:] = rest
            worker.run(build)
        case _:
            main()
