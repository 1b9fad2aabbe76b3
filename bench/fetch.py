"""How fast a model comes from an MLflow server: `llm-runtime fetch` beside `mlflow.artifacts.download_artifacts`.

`PYTHONPATH=.:hack .venv/bin/python -m bench.fetch [--mib 256] [--files 8] [--rounds 3]`. One server, the two in turns,
each in a process of its own that reports the seconds of the download alone and its peak memory. Ours also verifies,
hashes and forces the files to the disk; what the other one leaves undone is not added to its time.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import machine
from devstack.registry import mlflow_server, push

PEER, OURS = "download_artifacts", "llm-runtime fetch"
NAME = "bench"
SCRIPTS = {
    PEER: "mlflow.artifacts.download_artifacts('models:/{name}/{version}', dst_path='{out}')",
    OURS: (
        "fetch.Fetcher(MlflowRegistry('{uri}'), Path('{out}'))"
        ".fetch(MlflowVersion(tracking_uri='{uri}', name='{name}', version='{version}'))"
    ),
}
PROGRAM = """
import json, resource, time
from pathlib import Path
import mlflow.artifacts
from llm_runtime.contract import MlflowVersion
from llm_runtime.models import fetch
from llm_runtime.models.registry import MlflowRegistry
began = time.monotonic()
{call}
seconds = time.monotonic() - began
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fetch", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the whole model")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {PEER: [], OURS: []}
    memory: dict[str, list[float]] = {PEER: [], OURS: []}
    with tempfile.TemporaryDirectory() as place, mlflow_server(Path(place) / "mlflow") as server:
        write_model(Path(place) / "model", options.files, options.mib << 20)
        version = push(server.uri, NAME, Path(place) / "model")
        print(json.dumps(machine()), flush=True)
        for turn in range(-1, options.rounds):  # The first warms the server and the page cache.
            for who in (PEER, OURS) if turn % 2 else (OURS, PEER):
                with tempfile.TemporaryDirectory(dir=place) as out:
                    call = SCRIPTS[who].format(name=NAME, version=version, out=out, uri=server.uri)
                    taken, peak = run(call, server.uri)
                if turn < 0:
                    continue
                seconds[who].append(taken)
                memory[who].append(peak)
                print(f"{who}: {taken:.2f} s, {options.mib * 1.048576 / taken:.0f} MB/s, {peak:.0f} MiB", flush=True)
    ratio = statistics.median(seconds[PEER]) / statistics.median(seconds[OURS])
    print(f"ratio of medians: {ratio:.2f}; peak memory of ours: {max(memory[OURS]):.0f} MiB")


def run(call: str, uri: str) -> tuple[float, float]:
    """Seconds and peak MiB of one download in a fresh process."""
    settings = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **settings, "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    taken, peak = json.loads(done.stdout.splitlines()[-1])
    return taken, peak


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
