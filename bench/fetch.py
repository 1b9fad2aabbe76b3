"""How fast a model comes from a store: `llm-runtime fetch` beside `mlflow.artifacts.download_artifacts`.

`PYTHONPATH=.:hack python -m bench.fetch [--mib 256] [--files 8] [--rounds 3] [--versitygw PROGRAM] [--place FOLDER]`

Four ways to the same files: an MLflow server with its files in a folder (`proxied folder`); one before an S3 store
that hands the bytes on (`proxied s3`) or signs addresses of them (`signed s3`); and the store itself (`direct s3`). The
store is versitygw where its program is named, else moto's server, which is slow. The two take turns, each in a process
of its own that reports the seconds and the processor's seconds of the download alone, and its peak memory. Ours also
verifies, hashes and forces the files to the disk; what the other leaves undone is not added to its time. `bare sockets`
read the same bytes from the same place over eight connections and drop them: no client is much faster than that.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import machine
from devstack.registry import mlflow_server, push
from devstack.store import BUCKET, client, s3_store

PEER, OURS, BARE = "download_artifacts", "llm-runtime fetch", "bare sockets"
TARGET = 1.5
WAYS = ("proxied folder", "proxied s3", "signed s3", "direct s3")
PROXIED = {"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
who, uri, out = sys.argv[1:]
from mlflow import MlflowClient
if who == "download_artifacts":
    from mlflow.artifacts import download_artifacts
    call = lambda: download_artifacts(uri, dst_path=out)
elif who == "llm-runtime fetch":
    from llm_runtime.contract import ModelConfig
    from llm_runtime.models.fetch import fetch
    call = lambda: fetch(ModelConfig(name="x", uri=uri), Path(out))
else:
    from bench.bare import read_all
    call = lambda: read_all(uri, 8)
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


@dataclass
class Way:
    """One way to the files, and what was measured on it."""

    uri: str
    environment: Mapping[str, str]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    peak_mib: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.fetch", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the whole model")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--versitygw", type=Path, help="program of an S3 store")
    parser.add_argument("--place", type=Path, help="where everything lies; /dev/shm leaves the disk out")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    options = parser.parse_args()
    print(json.dumps(machine()), flush=True)
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        model = Path(place) / "model"
        write_model(model, options.files, options.mib << 20)
        with ways(Path(place), model, options.versitygw, options.ways) as found:
            for turn in range(-1, options.rounds):  # The first warms the servers and the page cache.
                for way in found.values():
                    for who in (PEER, OURS, BARE) if turn % 2 else (BARE, OURS, PEER):
                        with tempfile.TemporaryDirectory(dir=place) as out:
                            taken = run(who, way, out)
                        if turn >= 0:
                            for kind, value in zip((way.seconds, way.cpu, way.peak_mib), taken, strict=True):
                                kind.setdefault(who, []).append(value)
    print("\n".join(table(found, options.mib)))


def table(found: Mapping[str, Way], mib: int) -> list[str]:
    """Medians, every run, and the ratio that is the target."""
    columns = ("way", "who", "MB/s", "seconds of every run", "CPU s", "peak MiB", "times download_artifacts")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, way in found.items():
        for who in (PEER, OURS, BARE):
            middle = statistics.median(way.seconds[who])
            every = ", ".join(f"{seconds:.2f}" for seconds in way.seconds[who])
            ratio = statistics.median(way.seconds[PEER]) / middle
            cpu, peak = statistics.median(way.cpu[who]), max(way.peak_mib[who])
            lines.append(
                f"| {name} | {who} | {mib * 1.048576 / middle:.0f} | {every} | {cpu:.2f} | {peak:.0f} | {ratio:.2f} |"
            )
    return lines


@contextmanager
def ways(place: Path, model: Path, versitygw: Path | None, wanted: list[str]) -> Iterator[dict[str, Way]]:
    """Running servers that have the model, by way."""
    with ExitStack() as stack:
        found: dict[str, Way] = {}
        if "proxied folder" in wanted:
            server = stack.enter_context(mlflow_server(place / "folder"))
            found["proxied folder"] = Way(location(server.uri, model), {"MLFLOW_TRACKING_URI": server.uri})
        if set(wanted) - {"proxied folder"}:
            store = stack.enter_context(s3_store(place / "store", versitygw))
            if {"proxied s3", "signed s3"} & set(wanted):
                before = stack.enter_context(mlflow_server(place / "s3", f"s3://{BUCKET}/mlflow", store))
                uri, server_uri = location(before.uri, model), {"MLFLOW_TRACKING_URI": before.uri}
                found |= {"proxied s3": Way(uri, {**server_uri, **PROXIED}), "signed s3": Way(uri, server_uri)}
            for file in model.iterdir():
                client(store).upload_file(str(file), BUCKET, f"plain/{file.name}")
            found["direct s3"] = Way(f"s3://{BUCKET}/plain", store)
        yield {name: way for name, way in found.items() if name in wanted}


def location(server: str, model: Path) -> str:
    """Where the server has the model, once it has."""
    from mlflow import MlflowClient

    version = MlflowClient(server, server).get_model_version("bench", push(server, "bench", model))
    return str(version.source)


def run(who: str, way: Way, out: str) -> tuple[float, float, float]:
    """Seconds, the processor's seconds and peak MiB of one download in a fresh process."""
    environment = {**os.environ, **QUIET, **way.environment}
    command = [sys.executable, "-c", PROGRAM, who, way.uri, out]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu, peak


def write_model(folder: Path, files: int, total_bytes: int) -> None:
    """A sharded model of random bytes, one tensor in each file."""
    folder.mkdir()
    size, places = total_bytes // files, {}
    for number in range(1, files + 1):
        name = f"model-{number:05}-of-{files:05}.safetensors"
        header = json.dumps({f"w{number}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + os.urandom(size))
        places[f"w{number}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")


if __name__ == "__main__":
    main()
