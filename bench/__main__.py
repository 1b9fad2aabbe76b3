"""The command line: `python -m bench [peers llamacpp single inprocess adapters prefix]`,
all without names."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import report
from bench.machine import commit, machine
from bench.results import Run, verdicts
from bench.scenarios import REQUESTS, SCENARIOS, Options
from bench.servers import COMPARED, KINDS, versions

DEFAULT = tuple(kind.key for kind in COMPARED)
ONE_MODEL = {"adapters", "prefix"}
"""Scenarios that run only with the first model, unless --model is given."""


def main() -> int:
    """Run the requested scenarios. Results are kept even if a later scenario fails."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TQDM_DISABLE"] = "1"
    failed = []
    for scenario in options.scenarios or SCENARIOS:
        for model in options.model or ["smollm2", "small"][: 1 if scenario in ONE_MODEL else None]:
            try:
                run = measure(scenario, model, options)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"{scenario}, {model}: {error}", file=sys.stderr, flush=True)
                failed.append(scenario)
                continue
            summary(run)
            if not options.dry:
                print(f"written: {report.write([run])}", flush=True)
    return bool(failed)


def parse() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="hack/bench", description="Our runtime beside its peers; see docs/development.md."
    )
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help=f"{', '.join(SCENARIOS)}; none: all of them",
    )
    parser.add_argument(
        "--model",
        action="append",
        help="smollm2, small, or the folder of a model without end of sequence",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "int8", "int4"), default="float32"
    )
    parser.add_argument(
        "--clients", type=numbers, default=tuple(REQUESTS), help="for peers, default 1,8,32,128"
    )
    parser.add_argument(
        "--servers",
        type=names,
        default=DEFAULT,
        help=f"for peers: {', '.join(KINDS)}; default {','.join(DEFAULT)}",
    )
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    parsed = parser.parse_args()
    unknown = [name for name in parsed.scenarios if name not in SCENARIOS]
    unknown += [name for name in parsed.servers if name not in KINDS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    return parsed


def numbers(text: str) -> tuple[int, ...]:
    """`1,8,32`."""
    return tuple(int(word) for word in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """`ours,vllm`."""
    return tuple(text.split(","))


def measure(scenario: str, model: str, options: argparse.Namespace) -> Run:
    """One run, with the machine and versions that it was made with."""
    print(f"\n== {scenario}: {model}, {options.dtype}, {options.rounds} rounds", flush=True)
    run = Run(
        scenario,
        Path(model).name,
        options.dtype,
        commit(),
        f"{datetime.now(UTC):%Y-%m-%d}",
        0.0,
        machine(),
        versions(),
    )
    started = time.monotonic()
    chosen = Options(model, options.dtype, options.rounds, options.servers, options.clients, say)
    SCENARIOS[scenario](chosen, run)
    run.seconds = round(time.monotonic() - started, 1)
    return run


def say(text: str) -> None:
    """A line of progress."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


def summary(run: Run) -> None:
    """The table and the targets, on the terminal."""
    print(f"\n{run.scenario}, {run.model}, {run.dtype}: {run.seconds:.0f} s")
    print(run.skipped or report.figures(run))
    lines: Sequence[str] = [
        f"{'✓' if found.met else '✗'} {found.title}: {found.ratio:g} (target {found.bound})"
        for found in verdicts(run)
    ]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
