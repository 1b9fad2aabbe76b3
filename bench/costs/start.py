"""What a start costs: `hack/bench start [--beside CHECKOUT] [--rounds 10] [--model smollm2] [--dry]`.

A real `llm-runtime serve`, from its process to the first 200 of /readyz, with files that the system
has read before. `--beside` names the checkout of another build; the two start in turns inside each
round, and who is first changes. Written to docs/benchmarks/start.json and start.md.
"""

import argparse
import compileall
import json
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import models
from bench.machine import ROOT, commit, machine
from bench.process import Process, cpu_seconds
from bench.report import FOLDER, number, table
from bench.stats import median
from devstack.ports import free_port

POLL_SECONDS = 0.01
SETTLE_SECONDS = 1.0
"""After readiness, before memory is read."""
METRICS = {
    "ready_s": "process start to ready, s",
    "cpu_s": "processor time of both processes until then, s",
    "engine_cpu_s": "of the engine's process",
    "pss_mib": "memory at rest (PSS), MiB",
    "engine_anonymous_mib": "of the engine's process, without mapped files",
}
METHOD = """\
One start of each build a round, in turns; medians of all rounds. The quotient is the median of the rounds' own, so
that what else the machine does falls on both. Files are warm: a first start, which is not counted, reads them and
compiles the CPU kernels. Python's bytecode is there, as it is in the images. "Nothing remembered" is a start that
measures the linear layers, as a machine's first one does. Memory is read one second after readiness, before any
request: PSS, which shares a file's pages among those who map it, and anonymous memory, which is the process's own.
The library is torch's wheel with CUDA, and importing it takes some 290 MiB of anonymous memory by itself; the image
for CPUs has another."""

Row = dict[str, float]
Rows = dict[str, list[Row]]
THIS = "this build"
FORGETFUL = "this build, nothing remembered"
BESIDE = "the build beside"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench start")
    parser.add_argument("--beside", type=Path, help="checkout of another build")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    builds = {THIS: ROOT, FORGETFUL: ROOT}
    if options.beside:
        builds[BESIDE] = options.beside.resolve()
    rows = measure(builds, models.folder(options.model), options.rounds)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before,
        "model": Path(options.model).name, "rounds": options.rounds, "figures": figures(rows),
        "quotients": quotients(rows),
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        (FOLDER / "start.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (FOLDER / "start.md").write_text(page(record))


def measure(builds: dict[str, Path], model: Path, rounds: int) -> Rows:
    """The figures of every start, by build."""
    rows: Rows = {title: [] for title in builds}
    scratch = Path(tempfile.mkdtemp(prefix="llm-start-"))
    for checkout in set(builds.values()):
        compileall.compile_dir(checkout / "runtime", quiet=2)
    try:
        for turn in range(-1, rounds):  # The first one warms the files.
            for title in list(builds)[::-1] if turn % 2 else list(builds):
                if title == FORGETFUL:
                    shutil.rmtree(scratch / "llm-operator" / "measured", ignore_errors=True)
                found = one_start(builds[title], model, scratch)
                if turn >= 0:
                    rows[title].append(found)
                print(
                    f"{turn + 1}: {title} {found['ready_s']:.1f} s, {found['cpu_s']:.1f} s of"
                    f" processor, {found['pss_mib']:.0f} MiB",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        return rows
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def one_start(checkout: Path, model: Path, scratch: Path) -> Row:
    """Start the runtime of a checkout, wait until it is ready, and end it."""
    port = free_port()
    config = scratch / "config.json"
    config.write_text(
        json.dumps({"model": {"name": "bench", "path": str(model)}, "authentication": "Disabled"})
    )
    command = [sys.executable, "-m", "llm_runtime", "serve", "--config", str(config)]
    command += ["--models", str(scratch), "--host", "127.0.0.1", "--port", str(port)]
    own = {
        "DATABASE_URL": "none", "PYTHONPATH": str(checkout / "runtime"), "XDG_CACHE_HOME": str(scratch),
    }  # fmt: skip
    began = time.monotonic()
    server = Process(command, {**os.environ, **own}, scratch, scratch / "log")
    try:
        server.wait_until_ready(f"http://127.0.0.1:{port}/readyz", POLL_SECONDS)
        ready = time.monotonic() - began
        http, *engine = (cpu_seconds(pid) for pid in server.pids())
        time.sleep(SETTLE_SECONDS)
        pids = server.pids()
        return {
            "ready_s": ready,
            "cpu_s": http + sum(engine),
            "engine_cpu_s": sum(engine),
            "pss_mib": sum(_kib(pid, "Pss") for pid in pids) / 1024,
            "engine_anonymous_mib": sum(_kib(pid, "Pss_Anon") for pid in pids[1:]) / 1024,
        }
    finally:
        server.stop()


def _kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def figures(rows: Rows) -> dict[str, Row]:
    """The median of each metric, by build."""
    return {
        title: {name: round(median([row[name] for row in found]), 2) for name in METRICS}
        for title, found in rows.items()
    }


def quotients(rows: Rows) -> Row:
    """How many times as much the build beside takes, as the median over the rounds."""
    if BESIDE not in rows:
        return {}
    pairs = list(zip(rows[BESIDE], rows[THIS], strict=True))
    return {
        name: round(median([beside[name] / this[name] for beside, this in pairs]), 2)
        for name in METRICS
    }


def page(record: dict[str, Any]) -> str:
    """The page in docs/benchmarks."""
    found = record["figures"]
    quotient = record["quotients"]
    head = ("", *found, *(["quotient"] if quotient else []))
    rows = [
        (
            title,
            *(number(each[name]) for each in found.values()),
            *([number(quotient[name])] if quotient else []),
        )
        for name, title in METRICS.items()
    ]
    about = record["machine"]
    return (
        "\n\n".join(
            (
                "# Start",
                f"From the process to readiness, with {record['model']}. Made by `hack/bench start` on"
                f" {record['date']}, commit {record['commit']}, {about['cores']} cores ({about['cpu']}),"
                f" load before {about['load_before']}, {record['rounds']} rounds.",
                METHOD,
                table(head, rows),
            )
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
