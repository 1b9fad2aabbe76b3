"""How fast a model comes from a store:
`llm-runtime fetch` beside `mlflow.artifacts.download_artifacts`.

`PYTHONPATH=.:hack python -m bench.fetch [--mib 256] [--files 8] [--rounds 3] [--versitygw PROGRAM]
[--place FOLDER]` Once `--seconds` (300) are over, counted from the start, no further round begins;
`--limit` (120) ends one download.

Four ways to the same files: an MLflow server with its files in a folder (`proxied folder`); one
before an S3 store that hands the bytes on (`proxied s3`) or signs addresses of them (`signed s3`);
and the store itself (`direct s3`). The store is versitygw where its program is named, else moto's
server, which is slow. The two take turns, each in a process of its own that reports the seconds and
the processor's seconds of the download alone, and its peak memory. Ours also verifies, hashes and
forces the files to the disk; what the other leaves undone is not added to its time. `bare sockets`
read the same bytes from the same place over eight connections and drop them: no client is much
faster than that. `bare, hashed` also hashes and writes them: what SHA-256 and the copy to files
cost by themselves. All run without the packages that MLflow's client imports where it finds them
and that the runtime's image does not have.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.machine import machine
from devstack.registry import mlflow_server, push
from devstack.store import BUCKET, client, s3_store

PEER, OURS, BARE, HASHED = WHO = (
    "download_artifacts",
    "llm-runtime fetch",
    "bare sockets",
    "bare, hashed",
)
WAYS = ("proxied folder", "proxied s3", "signed s3", "direct s3")
PROXIED = {"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
for absent in ("pandas", "pyarrow", "scipy", "sklearn", "matplotlib"):
    sys.modules[absent] = None
who, uri, out = sys.argv[1:]
from mlflow import MlflowClient
if who == "download_artifacts":
    from mlflow.artifacts import download_artifacts
    call = lambda: download_artifacts(uri, dst_path=out)
elif who == "llm-runtime fetch":
    from llm_runtime.contract import ModelConfig
    from llm_runtime.fetching.fetch import fetch
    call = lambda: fetch(ModelConfig(name="x", uri=uri), Path(out))
else:
    from bench.bare import read_all
    call = lambda: read_all(uri, 8, Path(out) if who == "bare, hashed" else None)
before = resource.getrusage(resource.RUSAGE_SELF)
began = time.monotonic()
call()
seconds = time.monotonic() - began
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
# Not ru_maxrss, which begins at what the parent had.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([seconds, cpu, int(peak.split()[1]) / 1024]))
"""


class Run(NamedTuple):
    """Time and memory of one download."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


@dataclass
class Way:
    """One way to the files, and what was measured on it."""

    uri: str
    environment: Mapping[str, str]
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def add(self, who: str, found: Run) -> None:
        """Keep a run of this round."""
        self.runs.setdefault(who, []).append(found)

    def seconds(self, who: str) -> list[float]:
        """Seconds of every round."""
        return [run.seconds for run in self.runs[who]]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.fetch", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the whole model")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--versitygw", type=Path, help="program of an S3 store")
    parser.add_argument(
        "--place", type=Path, help="where everything lies; /dev/shm leaves the disk out"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--who", nargs="+", default=list(WHO), choices=WHO)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--limit", type=float, default=120, help="seconds of one download")
    options = parser.parse_args()
    began = time.monotonic()
    if PEER not in options.who:
        parser.error(f"--who needs {PEER}: the others are compared to it")
    print(json.dumps(machine()), flush=True)
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        model = Path(place) / "model"
        write_model(model, options.files, options.mib << 20)
        with ways(Path(place), model, options.versitygw, options.ways) as found:
            tell(began, "the servers have the model")
            for way in found.values():  # Warms the servers and the page cache.
                run(PEER, way, place, options.limit)
            for turn in range(options.rounds):
                if turn and time.monotonic() - began > options.seconds:
                    tell(began, f"no time for more than {turn} rounds")
                    break
                for name, way in found.items():
                    for who in options.who if turn % 2 else options.who[::-1]:
                        way.add(who, run(who, way, place, options.limit))
                    tell(began, f"round {turn + 1}, {name}")
    print("\n".join(table(found, options.mib)))


def table(found: Mapping[str, Way], mib: int) -> list[str]:
    """Medians, every run, and the ratio that is the target:
    within each round, its median and its range."""
    columns = (
        "way",
        "who",
        "MB/s",
        "seconds of every run",
        "CPU s",
        "peak MiB",
        "times download_artifacts (range)",
    )
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, way in found.items():
        for who, runs in sorted(way.runs.items(), key=lambda item: WHO.index(item[0])):
            seconds = way.seconds(who)
            every = ", ".join(f"{second:.2f}" for second in seconds)
            cpu = statistics.median(run.cpu_seconds for run in runs)
            peak = max(run.peak_mib for run in runs)
            ratios = [peer / own for peer, own in zip(way.seconds(PEER), seconds, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            rate = mib * 1.048576 / statistics.median(seconds)
            lines.append(
                f"| {name} | {who} | {rate:.0f} | {every} | {cpu:.2f} | {peak:.0f} | {ratio} |"
            )
    return lines


def tell(began: float, what: str) -> None:
    """Print a line of progress."""
    print(f"{time.monotonic() - began:.0f} s: {what}", file=sys.stderr, flush=True)


@contextmanager
def ways(
    place: Path, model: Path, versitygw: Path | None, wanted: list[str]
) -> Iterator[dict[str, Way]]:
    """Running servers that have the model, by way."""
    with ExitStack() as stack:
        found: dict[str, Way] = {}
        if "proxied folder" in wanted:
            server = stack.enter_context(mlflow_server(place / "folder"))
            found["proxied folder"] = Way(
                location(server.uri, model), {"MLFLOW_TRACKING_URI": server.uri}
            )
        if set(wanted) - {"proxied folder"}:
            store = stack.enter_context(s3_store(place / "store", versitygw))
            if {"proxied s3", "signed s3"} & set(wanted):
                before = stack.enter_context(
                    mlflow_server(place / "s3", f"s3://{BUCKET}/mlflow", store)
                )
                uri = location(before.uri, model)
                server_uri = {"MLFLOW_TRACKING_URI": before.uri}
                found |= {
                    "proxied s3": Way(uri, {**server_uri, **PROXIED}),
                    "signed s3": Way(uri, server_uri),
                }
            for file in model.iterdir():
                client(store).upload_file(str(file), BUCKET, f"plain/{file.name}")
            found["direct s3"] = Way(f"s3://{BUCKET}/plain", store)
        yield {name: way for name, way in found.items() if name in wanted}


def location(server: str, model: Path) -> str:
    """Where the server has the model, once it has."""
    from mlflow import MlflowClient

    version = MlflowClient(server, server).get_model_version("bench", push(server, "bench", model))
    return str(version.source)


def run(who: str, way: Way, place: str, limit_seconds: float) -> Run:
    """One download in a fresh process, into a folder in `place` that is gone afterwards."""
    environment = {**os.environ, **QUIET, **way.environment}
    with tempfile.TemporaryDirectory(dir=place) as out:
        command = [sys.executable, "-c", PROGRAM, who, way.uri, out]
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=limit_seconds,
        )
    return Run(*json.loads(done.stdout.splitlines()[-1]))


def write_model(folder: Path, files: int, total_bytes: int) -> None:
    """A sharded model of random bytes, one tensor in each file."""
    folder.mkdir()
    size = total_bytes // files
    places = {}
    for number in range(1, files + 1):
        name = f"model-{number:05}-of-{files:05}.safetensors"
        header = json.dumps(
            {f"w{number}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        ).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + os.urandom(size))
        places[f"w{number}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")


if __name__ == "__main__":
    main()
