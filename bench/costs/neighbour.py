"""What one key's refused requests cost another:
`hack/bench neighbour [--rounds 3] [--seconds 5] [--dry]`.

The runtime as it is, with a small model. One key asks for one token at a time; alone, and while
another key, whose minute's limit is used up, sends the largest bodies on 50 connections as fast as
it is answered. Both take turns inside each round. Written to docs/benchmarks/neighbour.json and
neighbour.md.
"""

import argparse
import asyncio
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from bench import models
from bench.machine import ROOT, commit, machine
from bench.process import Process
from bench.report import FOLDER, number, table
from bench.stats import median, percentile, rounded
from devstack.ports import free_port
from llm_runtime.contract import FileTier, KeyFile, KeyRecord, format_key, hash_key

QUIET = format_key("quiet", "x" * 43)
LOUD = format_key("loud", "y" * 43)
SALT = "salt"
PATH = "/v1/chat/completions"
CONNECTIONS = 50
MESSAGES = 31_000
"""Messages of one letter each: a body a little below the 1 MiB that a server takes by default."""
PROBE_SECONDS = 0.02
MAX_TIMES = 1.3
MAX_LIVE_MS = 50.0
METRICS = {"p50_ms": "one token, p50, ms", "p99_ms": "p99, ms", "live_p99_ms": "/livez p99, ms"}
METHOD = """\
The quiet key asks over one kept connection for one token, again and again. /livez is asked 50 times a second over
another. The loud key has a limit of one request a minute, and has used it; a process of its own sends its requests,
each on the same 50 connections as soon as the one before is answered. Every figure is the median over rounds, and the
ratio the median of the rounds' own. Clients and server share the machine's cores, so the ratio holds what the loud
client itself takes of them."""

Rows = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench neighbour")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--runtime",
        default="",
        help="the `runtime` folder of another checkout, to measure that one",
    )
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    rows = measure(options.model, options.rounds, options.seconds, options.runtime)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before, "model": options.model,
        "rounds": options.rounds, "seconds": options.seconds, "rows": rows, "targets": verdicts(rows),
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        (FOLDER / "neighbour.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        )
        (FOLDER / "neighbour.md").write_text(page(record))


def measure(model: str, rounds: int, seconds: float, runtime: str = "") -> Rows:
    """Measure one server, alternately alone and beside the loud key."""
    scratch = Path(tempfile.mkdtemp(prefix="llm-neighbour-"))
    port = free_port()
    rows = Rows()
    environment = {
        **os.environ,
        "DATABASE_URL": "none",
        "PYTHONPATH": runtime or str(ROOT / "runtime"),
    }
    process = Process(
        command(scratch, models.folder(model), port), environment, scratch, scratch / "log"
    )
    try:
        process.wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        for turn in range(-1, rounds):  # The first one warms up.
            for way in ("alone", "beside") if turn % 2 else ("beside", "alone"):
                with noise(port, way == "beside") as loud:
                    figures = quiet(port, seconds)
                figures["loud_per_second"] = loud()
                if turn >= 0:
                    rows.setdefault(way, []).append(
                        {name: rounded(value) or 0.0 for name, value in figures.items()}
                    )
                print(f"{turn + 1}: {way} {figures}", file=sys.stderr, flush=True)
    finally:
        process.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    return rows


def command(folder: Path, model: Path, port: int) -> Sequence[str]:
    """The server, with a key for each of the two."""
    config = folder / "config.yaml"
    keys = folder / "keys.json"
    config.write_text(yaml.safe_dump({"model": {"name": "bench", "path": str(model)}}))
    records = [
        KeyRecord(
            id=key.split("_")[1],
            digest=hash_key(key, SALT),
            name=f"bench/{key.split('_')[1]}",
            tier=tier,
        )
        for key, tier in ((QUIET, "free"), (LOUD, "used"))
    ]
    tiers = (FileTier(name="free"), FileTier(name="used", requests_per_minute=1))
    keys.write_text(
        KeyFile(salt=SALT, keys=tuple(records), tiers=tiers, default_tier="free").model_dump_json(
            by_alias=True
        )
    )
    command = [
        sys.executable,
        "-m",
        "llm_runtime",
        "serve",
        "--config",
        str(config),
        "--keys",
        str(keys),
    ]
    return [*command, "--models", str(folder), "--host", "127.0.0.1", "--port", str(port)]


def quiet(port: int, seconds: float) -> dict[str, float]:
    """Latencies of one-token answers and of /livez, in milliseconds."""
    until = time.perf_counter() + seconds
    live = list[float]()

    def probe() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < until:
            live.append(_timed(connection, "GET", "/livez"))
            time.sleep(PROBE_SECONDS)

    prober = threading.Thread(target=probe)
    prober.start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    answers = list[float]()
    body = json.dumps(
        {
            "model": "bench",
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Hello there"}],
        }
    )
    while time.perf_counter() < until:
        answers.append(_timed(connection, "POST", PATH, body, QUIET))
    prober.join()
    return {
        "p50_ms": median(answers),
        "p99_ms": percentile(answers, 99),
        "live_p99_ms": percentile(live, 99),
    }


def _timed(
    connection: http.client.HTTPConnection, method: str, path: str, body: str = "", key: str = ""
) -> float:
    began = time.perf_counter()
    headers = {"Content-Type": "application/json", "X-API-Key": key} if key else {}
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}")
    return 1000 * (time.perf_counter() - began)


@contextmanager
def noise(port: int, wanted: bool) -> Iterator[Any]:
    """Let the loud key send requests during the block, if wanted.
    Afterwards, its answers per second are known."""
    if not wanted:
        yield lambda: 0.0
        return
    command = [
        sys.executable,
        "-m",
        "bench.costs.neighbour",
        "noise",
        f"http://127.0.0.1:{port}{PATH}",
    ]
    loud = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert loud.stdout
    loud.stdout.readline()  # All of its connections have been answered once.
    said = [0.0]
    try:
        yield lambda: said[0]
    finally:
        out, _ = loud.communicate("stop\n")
        said[0] = float(out)


async def shout(url: str) -> float:
    """Send requests until a line comes on stdin. Returns the answers per second."""
    address = urlsplit(url)
    body = json.dumps(
        {"model": "bench", "messages": [{"role": "user", "content": "a"}] * MESSAGES}
    ).replace(" ", "")
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nX-API-Key: {LOUD}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = (head + body).encode()
    answers = 0
    began = time.perf_counter()

    async def client() -> None:
        nonlocal answers
        while True:
            with suppress(OSError, asyncio.IncompleteReadError, ValueError):
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                while True:
                    writer.write(request)
                    told = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(int(told.partition(b"content-length:")[2].split()[0]))
                    answers += 1
                    if answers == CONNECTIONS:
                        print("all are answered", flush=True)
                    await writer.drain()
            await asyncio.sleep(0.01)

    clients = [asyncio.create_task(client()) for _ in range(CONNECTIONS)]
    await asyncio.to_thread(sys.stdin.readline)
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return answers / (time.perf_counter() - began)


def verdicts(rows: Rows) -> list[dict[str, Any]]:
    """Both targets, and what came out."""
    times = median(
        [b["p50_ms"] / a["p50_ms"] for a, b in zip(rows["alone"], rows["beside"], strict=True)]
    )
    live = median([figures["live_p99_ms"] for figures in rows["beside"]])
    found = [
        ("one token beside the loud key over alone", MAX_TIMES, times),
        ("/livez p99 beside it, ms", MAX_LIVE_MS, live),
    ]
    return [
        {"title": title, "bound": most, "value": rounded(got), "met": got <= most}
        for title, most, got in found
    ]


def page(record: dict[str, Any]) -> str:
    """The page, from the record and nothing else."""
    titles = {"alone": "alone", "beside": "beside the loud key"}
    shown = [
        (
            titles[way],
            *(
                number(median([figures[name] for figures in record["rows"][way]]))
                for name in METRICS
            ),
        )
        for way in titles
    ]
    targets = [
        (
            found["title"],
            f"at most {found['bound']:g}",
            f"{found['value']:g}",
            "yes" if found["met"] else "**no**",
        )
        for found in record["targets"]
    ]
    loud = median([figures["loud_per_second"] for figures in record["rows"]["beside"]])
    circumstances = record["machine"]
    parts = [
        "# Benchmark of a noisy neighbour",
        "Made by `hack/bench neighbour` from [neighbour.json](neighbour.json); not written by hand.",
        table(("target", "bound", "measured", "met"), targets),
        table(("", *METRICS.values()), shown),
        f"The loud key had {number(loud)} answers a second. {record['date']}, commit {record['commit']}, "
        f"{record['model']}, {record['rounds']} rounds of {record['seconds']:g} s; {circumstances['cpu']}, "
        f"{circumstances['cores']} cores, load {circumstances['load_before']} before.",
        "## How it was measured",
        METHOD,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["noise"]:
        print(asyncio.run(shout(sys.argv[2])))
    else:
        main()
