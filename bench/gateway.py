"""What the gateway costs: `hack/bench gateway [--rounds 3] [--seconds 3] [--dry]`,
ours beside LiteLLM's proxy.

The model answers at once, so that what remains is HTTP, keys, limits, the usage log. Ways take
turns inside each round, idle ones are stopped; one process serves each. Written to
docs/benchmarks/gateway.json and gateway.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from bench import calls
from bench.machine import ROOT, commit, machine
from bench.process import NotStarted, Process
from bench.report import FOLDER, number, table
from bench.stats import median, rounded
from devstack.cache import CACHE
from devstack.ports import free_port
from llm_runtime.contract import KeyFile, KeyRecord, format_key, hash_key

LITELLM = Path(os.environ.get("LLM_OPERATOR_LITELLM") or CACHE / "bench" / "litellm")
KEY = format_key("bench", "x" * 43)
SALT = "salt"
CLIENTS = (1, 50)
PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello there, how are you today?"}]
ANSWER = " ".join(f"word{number}" for number in range(16))
METRICS = {
    "requests_per_second": "requests/s",
    "latency_p50_ms": "p50, ms",
    "latency_p99_ms": "p99, ms",
}
NO_LIMIT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Way:
    """One server under test: how to start it, and the request that it gets."""

    key: str
    title: str
    fields: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, str]
    ready_path: str = "/readyz"

    def command(self, folder: Path, port: int) -> Sequence[str]:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.config))
        if self.key == "litellm":
            return [
                str(LITELLM / "bin" / "litellm"),
                "--config",
                str(config),
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ]
        keys = folder / "keys.json"
        record = KeyRecord(id="bench", digest=hash_key(KEY, SALT), name="bench/bench")
        keys.write_text(KeyFile(salt=SALT, keys=(record,)).model_dump_json(by_alias=True))
        command = [
            sys.executable,
            "-m",
            "bench.mock",
            "serve",
            "--config",
            str(config),
            "--keys",
            str(keys),
        ]
        return [*command, "--host", "127.0.0.1", "--port", str(port)]


def ours(key: str, title: str, *, guarded: bool, cached: bool = False) -> Way:
    """The runtime with a mock in place of its engine."""
    limits = {
        "requestsPerMinute": NO_LIMIT,
        "tokensPerMinute": NO_LIMIT,
        "tokensPerMonth": NO_LIMIT,
    }
    config = {
        "model": {"name": "mock", "path": "mock"},
        "server": {"completionCache": {"enabled": cached}},
        "authentication": "Required" if guarded else "Disabled",
        "tiers": [{"name": "standard", "maxConcurrent": 1000, **(limits if guarded else {})}],
    }
    # Only a deterministic request can be answered from the cache.
    fields = {"model": "mock", "max_tokens": 16, "temperature": 0 if cached else 0.7}
    return Way(
        key, title, fields, config, {"DATABASE_URL": "sqlite:///usage.db" if guarded else "none"}
    )


WAYS = (
    ours("bare", "ours: no keys, no limits, no usage log", guarded=False),
    ours("guarded", "ours: keys, limits, usage log", guarded=True),
    ours("cached", "ours: the same, from the completion cache", guarded=True, cached=True),
    Way(
        "litellm",
        "LiteLLM's proxy: one key, mock response",
        {"model": "mock"},
        {
            "model_list": [
                {
                    "model_name": "mock",
                    "litellm_params": {
                        "model": "openai/mock",
                        "api_key": "none",
                        "mock_response": ANSWER,
                    },
                }
            ],
            "general_settings": {"master_key": KEY},
        },
        {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        "/health/liveliness",
    ),
)

TARGETS = (
    ("guarded@1", "latency_p50_ms", "at most", 1.0),
    ("guarded@50", "requests_per_second", "at least", 1500.0),
    ("guarded@50", "latency_p99_ms", "at most", 40.0),
    ("cached@50", "requests_per_second", "at least", 3000.0),
)
TIMES_LITELLM = 10.0
"""At 50 clients, in requests per second: the median of the rounds' own ratios."""

METHOD = """\
Every figure is the median over rounds; inside a round the ways take turns, and each ratio is the median of the rounds'
own. Each way is one process with one worker; the others are stopped (SIGSTOP) meanwhile. The clients are a process of
their own on the same machine, which sends prepared bytes over kept connections and looks for nothing but the end of the
answer. A request is a chat of 7 words; the answer has 16 tokens and comes whole. Ours takes it from a mock in the place
of its engine, in the HTTP process; LiteLLM's proxy from its own `mock_response`. LiteLLM's proxy does more for each
request than ours: it routes between providers and keeps account of prices."""

Rows = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench gateway")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--ways", default=",".join(way.key for way in WAYS))
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    chosen = [way for way in WAYS if way.key in options.ways.split(",")]
    before = machine()
    rows, absent = measure(chosen, options.rounds, options.seconds)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before, "versions": versions(),
        "rounds": options.rounds, "seconds": options.seconds, "rows": rows, "absent": absent,
        "medians": {row: {name: value(rows, row, name) for name in METRICS} for row in rows},
        "targets": verdicts(rows),
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "gateway.json").write_text(
            json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        )
        (FOLDER / "gateway.md").write_text(page(record))


def measure(ways: Sequence[Way], rounds: int, seconds: float) -> tuple[Rows, dict[str, str]]:
    """Every way at each number of clients, in turns; ways that do not start, with the reason."""
    scratch = Path(tempfile.mkdtemp(prefix="llm-gateway-"))
    running: dict[str, tuple[Way, Process, str]] = {}
    rows = Rows()
    absent = dict[str, str]()
    try:
        for way in ways:
            try:
                running[way.key] = (way, *start(way, scratch))
            except (NotStarted, OSError) as reason:
                absent[way.key] = (
                    str(reason).replace(str(scratch), "FOLDER").replace(str(LITELLM), "VENV")[-300:]
                )
        for turn in range(-1, rounds):  # The first one warms up.
            for clients in CLIENTS:
                for key in sorted(
                    running, key=lambda key: (list(running).index(key) + turn) % len(running)
                ):
                    figures = once(*running[key], clients, seconds if turn >= 0 else 1.0)
                    if turn >= 0:
                        rows.setdefault(f"{key}@{clients}", []).append(figures)
                    print(f"{turn + 1}: {key}@{clients} {figures}", file=sys.stderr, flush=True)
    finally:
        for _, process, _ in running.values():
            process.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    return rows, absent


def start(way: Way, scratch: Path) -> tuple[Process, str]:
    """A server that is ready and stands still, and its address."""
    folder = scratch / way.key
    port = free_port()
    folder.mkdir()
    environment = {**os.environ, **way.environment, "PYTHONPATH": str(ROOT)}
    process = Process(way.command(folder, port), environment, folder, folder / "log")
    try:
        process.wait_until_ready(f"http://127.0.0.1:{port}{way.ready_path}")
    except BaseException:
        process.stop()
        raise
    process.pause()
    return process, f"http://127.0.0.1:{port}{PATH}"


def once(way: Way, process: Process, url: str, clients: int, seconds: float) -> dict[str, float]:
    """One measurement."""
    process.resume()
    try:
        body = {**way.fields, "messages": MESSAGES}
        seen = calls.run(url, body, {"Authorization": f"Bearer {KEY}"}, clients, seconds)
    finally:
        process.pause()
    return {name: rounded(figure) or 0.0 for name, figure in seen.figures().items()}


def value(rows: Rows, row: str, metric: str) -> float | None:
    """The median over rounds."""
    return rounded(median([figures[metric] for figures in rows.get(row, ())]))


def verdicts(rows: Rows) -> list[dict[str, Any]]:
    """Every target that was measured, and what came out."""
    found = []
    for row, metric, kind, bound in TARGETS:
        if (got := value(rows, row, metric)) is not None:
            met = got >= bound if kind == "at least" else got <= bound
            found.append(
                {
                    "title": f"{row}: {METRICS[metric]}",
                    "bound": f"{kind} {bound:g}",
                    "value": got,
                    "met": met,
                }
            )
    name = "requests_per_second"
    pairs = zip(rows.get("guarded@50", ()), rows.get("litellm@50", ()), strict=False)
    if ratios := [a[name] / b[name] for a, b in pairs]:
        times = rounded(median(ratios), 3) or 0.0
        title = "guarded@50 over litellm@50: requests/s"
        at_least = f"at least {TIMES_LITELLM:g} times"
        found.append(
            {"title": title, "bound": at_least, "value": times, "met": times >= TIMES_LITELLM}
        )
    return found


def page(record: dict[str, Any]) -> str:
    """The page, from the record and nothing else."""
    titles = {way.key: way.title for way in WAYS}
    rows = [
        (
            row.partition("@")[2],
            titles[row.partition("@")[0]],
            *(number(figures[name] or 0.0) for name in METRICS),
        )
        for row, figures in sorted(
            record["medians"].items(), key=lambda item: int(item[0].partition("@")[2])
        )
    ]
    circumstances = record["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts = [
        "# Benchmark of the gateway",
        "Made by `hack/bench gateway` from [gateway.json](gateway.json); not written by hand.",
        table(
            ("target", "bound", "measured", "met"),
            (
                (
                    found["title"],
                    found["bound"],
                    f"{found['value']:g}",
                    "yes" if found["met"] else "**no**",
                )
                for found in record["targets"]
            ),
        ),
        table(("clients", "", *METRICS.values()), rows),
        *(f"{titles[key]} is missing: {reason}" for key, reason in record["absent"].items()),
        f"{record['date']}, commit {record['commit']}, {record['rounds']} rounds of {record['seconds']:g} s; "
        f"{circumstances['cpu']}, {circumstances['cores']} cores, load {circumstances['load_before']} before; "
        f"{packages}.",
        "## How it was measured",
        METHOD,
    ]
    return "\n\n".join(parts) + "\n"


def versions() -> dict[str, str]:
    """Versions of everything that is compared."""
    found = {
        name: version(name) for name in ("llm-operator", "fastapi", "uvicorn", "uvloop", "pydantic")
    }
    python = LITELLM / "bin" / "python"
    if python.is_file():
        code = "from importlib.metadata import version as v; print(v('litellm'))"
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        found.update({"litellm": asked.stdout.strip()} if not asked.returncode else {})
    return found


if __name__ == "__main__":
    main()
