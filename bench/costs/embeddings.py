"""Embeddings beside sentence-transformers: `hack/bench embeddings [--rounds 5] [--seconds 8]
[--clients 32] [--model small|base|FOLDER] [--texts 1,8] [--dry]`.

The same model behind this runtime and behind a plain FastAPI that calls `SentenceTransformer.encode`,
as two ways of writing that: in FastAPI's threads, and one request after another. They take turns
inside each round. Written to docs/benchmarks/embeddings.json and embeddings.md.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from bench.costs.embedder_folder import make
from bench.machine import ROOT, commit, machine
from bench.process import Process
from bench.report import FOLDER, number, table
from bench.stats import median, percentile
from devstack.ports import free_port

TARGET = 1.5
THIS = "this runtime"
PEERS = {
    "threads": "sentence-transformers, FastAPI's threads",
    "serial": "sentence-transformers, one after another",
}
WORDS = (4, 90)
"""Least and most words of a text; half of the texts have under 16."""
METHOD = """\
Closed loop: each client sends its next request when it has the answer to the last one. Texts are random words of the
model's vocabulary, most of them short, so that lengths differ as in a search: half have under 16 words, a tenth over
60. All servers answer base64, and run with two threads of torch. The quotient is the median over the rounds of this
runtime's texts a second by those of the faster way of sentence-transformers. Answers of both are compared before the
first round."""

Row = dict[str, float]
Rows = dict[str, list[Row]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench embeddings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", default="1,8", help="texts of a request")
    parser.add_argument("--model", default="small", help="small, base, or a folder")
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    scratch = Path(tempfile.mkdtemp(prefix="llm-embeddings-"))
    try:
        sizes = [int(size) for size in options.texts.split(",")]
        apart, rows = measure(scratch, options, sizes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before,
        "model": Path(options.model).name, "rounds": options.rounds, "seconds": options.seconds,
        "clients": options.clients, "largest_difference": apart,
        "figures": {size: figures(found) for size, found in rows.items()},
        "quotients": {size: quotient(found) for size, found in rows.items()},
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / "embeddings.json").write_text(text)
        (FOLDER / "embeddings.md").write_text(page(record))


def measure(
    scratch: Path, options: argparse.Namespace, sizes: Sequence[int]
) -> tuple[float, dict[int, Rows]]:
    """The largest difference of both sides' vectors, and all figures by texts of a request."""
    model = make(scratch / "model", options.model)
    texts = _texts(model, 4000)
    servers = {THIS: _ours(scratch, model)}
    servers |= {way: _peer(scratch, model, way) for way in PEERS}
    try:
        for url, server in servers.values():
            server.wait_until_ready(f"{url}/readyz")
        apart = asyncio.run(_difference([url for url, _ in servers.values()], texts[:24]))
        rows: dict[int, Rows] = {size: {who: [] for who in servers} for size in sizes}
        for turn in range(-1, options.rounds):  # The first one warms up.
            for size in sizes:
                for who in list(servers)[::-1] if turn % 2 else list(servers):
                    found = _alone(servers, who, options, texts, size)
                    if turn >= 0:
                        rows[size][who].append(found)
                    print(
                        f"{turn + 1}: {size} texts, {who} {found['texts']:.0f} texts/s, p50"
                        f" {found['p50_ms']:.0f} ms",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
        return apart, rows
    finally:
        for _, server in servers.values():
            server.stop()


def _alone(
    servers: dict[str, tuple[str, Process]],
    who: str,
    options: argparse.Namespace,
    texts: Sequence[str],
    size: int,
) -> Row:
    """Load one server while the others stand still."""
    for name, (_, server) in servers.items():
        if name != who:
            server.pause()
    try:
        return asyncio.run(_load(servers[who][0], options, texts, size))
    finally:
        for _, server in servers.values():
            server.resume()


async def _load(url: str, options: argparse.Namespace, texts: Sequence[str], size: int) -> Row:
    taken = list[float]()
    chance = random.Random(size)
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        began = time.perf_counter()

        async def one() -> None:
            while time.perf_counter() - began < options.seconds:
                sent = time.perf_counter()
                await _ask(client, url, chance.sample(texts, size))
                taken.append(time.perf_counter() - sent)

        await asyncio.gather(*(one() for _ in range(options.clients)))
        seconds = time.perf_counter() - began
    return {
        "texts": size * len(taken) / seconds,
        "p50_ms": 1000 * percentile(taken, 50),
        "p99_ms": 1000 * percentile(taken, 99),
    }


async def _ask(client: httpx.AsyncClient, url: str, texts: Sequence[str]) -> list[str]:
    body = {"model": "bench", "input": list(texts), "encoding_format": "base64"}
    answer = await client.post(f"{url}/v1/embeddings", json=body)
    answer.raise_for_status()
    return [each["embedding"] for each in answer.json()["data"]]


async def _difference(urls: Sequence[str], texts: Sequence[str]) -> float:
    import base64

    import numpy as np

    async with httpx.AsyncClient(timeout=120) as client:
        found = [await _ask(client, url, texts) for url in urls]
    ours, *others = [
        np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in each]) for each in found
    ]
    return max(float(np.abs(ours - other).max()) for other in others)


def _texts(model: Path, count: int) -> list[str]:
    words = [
        word
        for word in json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        if word.isalnum()
    ]
    chance = random.Random(7)
    least, most = WORDS
    lengths = [round(least + (most - least) * chance.random() ** 3) for _ in range(count)]
    return [" ".join(chance.choices(words, k=length)) for length in lengths]


def _ours(scratch: Path, model: Path) -> tuple[str, Process]:
    port = free_port()
    config = scratch / "ours.json"
    settings = {"model": {"name": "bench", "path": str(model)}, "authentication": "Disabled"}
    everybody = {"name": "standard", "maxConcurrent": None}
    config.write_text(json.dumps({**settings, "tiers": [everybody]}))
    command = [sys.executable, "-m", "llm_runtime", "serve", "--config", str(config)]
    command += ["--models", str(scratch), "--host", "127.0.0.1", "--port", str(port)]
    own = {"DATABASE_URL": "none", "PYTHONPATH": str(ROOT / "runtime")}
    process = Process(command, {**os.environ, **own}, scratch, scratch / "ours.log")
    return f"http://127.0.0.1:{port}", process


def _peer(scratch: Path, model: Path, way: str) -> tuple[str, Process]:
    port = free_port()
    command = [sys.executable, "-m", "bench.costs.sentence_server", str(model), way, str(port)]
    process = Process(command, os.environ, ROOT, scratch / f"{way}.log")
    return f"http://127.0.0.1:{port}", process


def figures(rows: Rows) -> dict[str, Row]:
    """The median of each metric, by server."""
    return {
        who: {name: round(median([row[name] for row in found]), 1) for name in found[0]}
        for who, found in rows.items()
    }


def quotient(rows: Rows) -> float:
    """Texts a second by those of the faster peer, as the median over the rounds."""
    peers = zip(*(rows[way] for way in PEERS), strict=True)
    best = [max(row["texts"] for row in found) for found in peers]
    return round(
        median([own["texts"] / peer for own, peer in zip(rows[THIS], best, strict=True)]), 2
    )


def page(record: dict[str, Any]) -> str:
    """docs/benchmarks/embeddings.md."""
    lines = [
        "# Benchmark of embeddings", "",
        "Made by `hack/bench embeddings` from [embeddings.json](embeddings.json); not written by hand.", "",
        table(
            ("texts of a request", "times the faster peer's texts a second", "target", "met"),
            (
                (str(size), number(found), str(TARGET), "yes" if found >= TARGET else "no")
                for size, found in record["quotients"].items()
            ),
        ),
    ]  # fmt: skip
    for size, found in record["figures"].items():
        head = (f"{size} texts of a request", "texts/s", "p50, ms", "p99, ms")
        body = (
            (PEERS.get(who, who), *(number(row[name]) for name in ("texts", "p50_ms", "p99_ms")))
            for who, row in found.items()
        )
        lines += ["", table(head, body)]
    place = record["machine"]
    lines += [
        "",
        f"Largest difference of a number in a vector from sentence-transformers' own:"
        f" {record['largest_difference']:.1g}.",
        f"{record['date']}, commit {record['commit']}, {record['model']}, {record['clients']} clients,"
        f" {record['rounds']} rounds of {record['seconds']:g} s; {place['cpu']}, {place['cores']}"
        f" cores, load {place['load_before']} before.",
        "", "## How it was measured", "", METHOD, "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
