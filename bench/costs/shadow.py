"""What shadow traffic costs stable: `hack/bench shadow [--rounds 10] [--seconds 10] [--rate 4]
[--tokens 16] [--dry]`.

Two real runtimes with the same model: a stable one under constant load, and a candidate that it
sends a copy of every request to. Copies are on and off in turns inside each round, by the mounted
file alone, as an operator would do it. Written to docs/benchmarks/shadow.json and shadow.md.
"""

import argparse
import http.client
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import models
from bench.machine import ROOT, commit, machine
from bench.process import Process
from bench.report import FOLDER, number, table
from bench.stats import median, percentile, rounded
from devstack.ports import free_port
from llm_runtime.contract import (
    KEYS_FILE,
    METRIC_SHADOW_COPIES,
    SHADOW_FILE,
    KeyFile,
    KeyRecord,
    ShadowFile,
    format_key,
    hash_key,
)

KEY = format_key("bench", "x" * 43)
SALT = "salt"
PATH = "/v1/completions"
LOOK_SECONDS = 0.2
"""After the file has changed, before a turn begins."""
MAX_CHANGE = 0.03
WAYS = {"off": "no copies", "on": "100 % copied"}
METRICS = {"p50_ms": "p50, ms", "p99_ms": "p99, ms", "answers": "answers", "lost": "failed"}
METHOD = """\
Requests begin at fixed times, whatever has become of those before, from threads in the process that measures. Each is
greedy, has a prompt of its own, and its latency counts from when it was due. The
candidate runs under SCHED_IDLE: in a cluster it has a machine of its own, here it gets what stable leaves of this one.
p50 and p99 are those of all answers of all rounds of one way together; the change is their quotient less 1."""

Rows = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench shadow")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    rows, copies = measure(
        options.model, options.rounds, options.seconds, Load(options.rate, options.tokens)
    )
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before, "model": options.model,
        "rounds": options.rounds, "seconds": options.seconds, "rate": options.rate,
        "tokens": options.tokens, "copies": copies,
        "figures": figures(rows), "targets": verdicts(rows), "noise": noise(rows["off"]),
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        (FOLDER / "shadow.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (FOLDER / "shadow.md").write_text(page(record))


@dataclass(frozen=True)
class Load:
    """Requests a second, and the tokens of each answer."""

    rate: float
    tokens: int


def measure(model: str, rounds: int, seconds: float, steady: Load) -> tuple[Rows, dict[str, float]]:
    """Latencies by way, and how many copies ended how."""
    scratch = Path(tempfile.mkdtemp(prefix="llm-shadow-"))
    keys = scratch / "keys"
    keys.mkdir()
    record = KeyRecord(id="bench", digest=hash_key(KEY, SALT), name="bench/bench")
    (keys / KEYS_FILE).write_text(KeyFile(salt=SALT, keys=(record,)).model_dump_json(by_alias=True))
    ports = {"bench-stable": free_port(), "bench-candidate": free_port()}
    order = ShadowFile(
        stable="bench-stable",
        candidate="bench-candidate",
        url=f"http://127.0.0.1:{ports['bench-candidate']}",
        token="t" * 43,
    ).model_dump_json(by_alias=True)
    rows = Rows()
    servers = list[Process]()
    try:
        for name, port in ports.items():
            server = _serve(scratch, models.folder(model), name, port)
            servers.append(server)
            server.wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        _yields(servers[1])
        for turn in range(-1, rounds):  # The first one warms up.
            for way in ("off", "on") if turn % 2 else ("on", "off"):
                _switch(keys / SHADOW_FILE, order if way == "on" else "")
                found = load(ports["bench-stable"], steady, seconds, f"{turn} {way}")
                if turn >= 0:
                    rows.setdefault(way, []).append(found)
                shown = (
                    f"p50 {median(found['ms']):.1f} ms, {found['lost']} failed"
                    if found["ms"]
                    else "no answers"
                )
                print(f"{turn + 1}: {way} {shown}", file=sys.stderr, flush=True)
        return rows, _copies(ports["bench-stable"])
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _serve(scratch: Path, model: Path, name: str, port: int) -> Process:
    config = scratch / f"{name}.json"
    config.write_text(json.dumps({"model": {"name": "bench", "path": str(model)}}))
    command = [sys.executable, "-m", "llm_runtime", "serve", "--config", str(config)]
    command += ["--keys", str(scratch / "keys" / KEYS_FILE), "--models", str(scratch)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    own = {"DATABASE_URL": "none", "HOSTNAME": f"{name}-0-0", "PYTHONPATH": str(ROOT / "runtime")}
    return Process(command, {**os.environ, **own}, scratch, scratch / f"{name}.log")


def _yields(server: Process) -> None:
    """Let the server run only while nobody else does: by thread,
    and where sessions are scheduled as groups by that."""
    for pid in server.pids():
        with suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text("19")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def _switch(file: Path, order: str) -> None:
    """Write the file as a kubelet does: readers see the old one or the new one."""
    if order:
        beside = file.with_suffix(".next")
        beside.write_text(order)
        beside.replace(file)
    else:
        file.unlink(missing_ok=True)
    time.sleep(LOOK_SECONDS)


def load(port: int, steady: Load, seconds: float, mark: str) -> dict[str, Any]:
    """Latencies in milliseconds of requests at a constant rate, and how many failed."""
    found = list[float]()
    lost = list[str]()
    began = time.perf_counter()

    def ask(count: int) -> None:
        due = began + count / steady.rate
        time.sleep(max(0.0, due - time.perf_counter()))
        body = {
            "model": "bench",
            "prompt": f"{mark} {count}: Once upon a time",
            "max_tokens": steady.tokens,
            "temperature": 0,
        }
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {"Content-Type": "application/json", "X-API-Key": KEY}
            connection.request("POST", PATH, json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            connection.close()
        except OSError as error:
            lost.append(str(error))
            return
        if answer.status == 200:
            found.append(1000 * (time.perf_counter() - due))
        else:
            lost.append(str(answer.status))

    threads = [
        threading.Thread(target=ask, args=(count,)) for count in range(int(steady.rate * seconds))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"ms": found, "lost": len(lost)}


def _copies(port: int) -> dict[str, float]:
    """How many copies ended how, as stable tells."""
    time.sleep(1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    counted = [line for line in lines if line.startswith(f"{METRIC_SHADOW_COPIES}_total")]
    return {
        line.partition('result="')[2].partition('"')[0]: float(line.split()[-1]) for line in counted
    }


def figures(rows: Rows) -> dict[str, dict[str, float]]:
    """By way: what METRICS names, of all rounds together."""
    return {way: _together(turns) for way, turns in rows.items()}


def _together(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    times = [ms for turn in turns for ms in turn["ms"]]
    found = {"p50_ms": median(times), "p99_ms": percentile(times, 99), "answers": len(times)}
    found["lost"] = sum(turn["lost"] for turn in turns)
    return {name: rounded(value) or 0.0 for name, value in found.items()}


def noise(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By how much p50 and p99 differ between the odd and the even of equal rounds."""
    odd = _together(turns[::2])
    even = _together(turns[1::2] or turns)
    return {name: round(abs(odd[name] / even[name] - 1), 4) for name in ("p50_ms", "p99_ms")}


def verdicts(rows: Rows) -> list[dict[str, Any]]:
    """The targets, and what came out."""
    found = figures(rows)

    def change(name: str) -> float:
        return found["on"][name] / found["off"][name] - 1

    targets: Sequence[tuple[str, float, float]] = (
        ("change of p50", MAX_CHANGE, change("p50_ms")),
        ("change of p99", MAX_CHANGE, change("p99_ms")),
        ("failed requests", 0, found["on"]["lost"]),
    )
    return [
        {"title": title, "bound": most, "value": round(got, 4), "met": abs(got) <= most}
        for title, most, got in targets
    ]


def page(record: dict[str, Any]) -> str:
    """The page, from the record and nothing else."""
    shown = [
        (title, *(number(record["figures"][way][name]) for name in METRICS))
        for way, title in WAYS.items()
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
    copies = ", ".join(
        f"{count:.0f} {result}" for result, count in sorted(record["copies"].items())
    )
    circumstances = record["machine"]
    parts = [
        "# Benchmark of shadow traffic",
        "Made by `hack/bench shadow` from [shadow.json](shadow.json); not written by hand.",
        table(("target", "bound", "measured", "met"), targets),
        table(("", *METRICS.values()), shown),
        f"Noise: the odd and the even rounds without copies differ by {record['noise']['p50_ms']:.1%} in p50 and "
        f"{record['noise']['p99_ms']:.1%} in p99. Of a change below that nothing can be said.",
        f"Copies: {copies}. {record['date']}, commit {record['commit']}, {record['model']}, {record['rounds']} rounds "
        f"of {record['seconds']:g} s each way, {record['rate']:g} requests a second, {record['tokens']} tokens each; "
        f"{circumstances['cpu']}, {circumstances['cores']} cores, load {circumstances['load_before']} before.",
        "## How it was measured",
        METHOD,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
