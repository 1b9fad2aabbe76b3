"""How long loading takes, and how much memory, beside `from_pretrained`:
`python -m bench.load_models`.

Each load has a process of its own; the loaders take turns on the same files, which are in the page
cache. A tiny model of the same kind is loaded before, so that no imports are timed. Time ends when
the model has computed once, for mapped weights are read no sooner. Memory is the process's own
(RssAnon + RssShmem, looked at every 10 ms), less what it was before loading: mapped files are not
in it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.models import FOLDER, folder

ROOT = Path(__file__).resolve().parents[1]
STORED = ("float32", "bfloat16")
LOADERS = ("ours", "from_pretrained")
WEIGHTS_BYTES = 1 << 30
"""About; as float32."""
MOST_PEAK = 1.2
MOST_TIME = 1.1
"""Targets: peak over the weights, time over that of `from_pretrained`."""
SHAPE = {
    "vocab_size": 49152, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> int:
    """Measure, print a table, and end with 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.load_models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", nargs=2, metavar=("LOADER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], Path(options.one[1]))))
        return 0
    missed = False
    columns = (
        "Stored as",
        "Loader",
        "Best, s",
        "Median, s",
        "All, s",
        "CPU, s",
        "Peak, MiB",
        "Peak / weights",
    )
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for stored in STORED:
        made("tiny")
        runs = measure(made(stored), options.rounds)
        # Noise only adds time, and a load of a second is easily disturbed.
        best = {loader: min(run["seconds"] for run in runs[loader]) for loader in LOADERS}
        shares = {
            loader: max(run["peak_bytes"] / run["weights_bytes"] for run in runs[loader])
            for loader in LOADERS
        }
        for loader in LOADERS:
            print(
                f"| {stored} | {loader} | {best[loader]:.2f} | {_row(runs[loader])} | {shares[loader]:.2f} |"
            )
        ratio = best["ours"] / best["from_pretrained"]
        print(f"{stored}: {ratio:.2f} times the time of from_pretrained", flush=True)
        missed |= shares["ours"] > MOST_PEAK or ratio > MOST_TIME
    return int(missed)


def _row(runs: list[dict[str, Any]]) -> str:
    every = ", ".join(f"{run['seconds']:.2f}" for run in runs)
    median = statistics.median(run["seconds"] for run in runs)
    cpu = min(run["cpu_seconds"] for run in runs)
    peak = max(run["peak_bytes"] for run in runs)
    return f"{median:.2f} | {every} | {cpu:.2f} | {peak >> 20}"


def measure(model: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each loader took, round by round.
    The first process reads the files into the cache and is not counted."""
    runs: dict[str, list[dict[str, Any]]] = {loader: [] for loader in LOADERS}
    for number in range(rounds + 1):
        for loader in LOADERS:
            command = [sys.executable, "-m", "bench.load_models", "--one", loader, str(model)]
            done = subprocess.run(
                command,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
                check=True,
            )
            if number:
                runs[loader].append(json.loads(done.stdout.splitlines()[-1]))
    return runs


def one(loader: str, model: Path) -> dict[str, Any]:
    """Load once, as float32 on the CPU, and compute once."""
    import torch

    from llm_runtime.loading.peak import PeakMemory

    load = _ours() if loader == "ours" else _from_pretrained()
    with torch.inference_mode():
        load(made("tiny"))(torch.tensor([[1, 2, 3]]))
    with PeakMemory() as peak:
        started = time.perf_counter()
        cpu = time.process_time()
        loaded = load(model)
        with torch.inference_mode():
            loaded(torch.tensor([[1, 2, 3]]))
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - cpu
    weights = sum(parameter.nbytes for parameter in loaded.parameters())
    peak_bytes = peak.peak_bytes - peak.before_bytes
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes,
        "weights_bytes": weights,
    }


def _ours() -> Callable[[Path], Any]:
    from llm_runtime.contract import EngineConfig, ModelConfig
    from llm_runtime.loading.load import load

    engine = EngineConfig(device="cpu", dtype="float32", max_model_length=2048)
    return lambda model: load(model, engine, ModelConfig(name="bench")).model


def _from_pretrained() -> Callable[[Path], Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(model: Path) -> Any:
        AutoTokenizer.from_pretrained(model)
        return AutoModelForCausalLM.from_pretrained(model, dtype="float32")

    return load


def made(stored: str) -> Path:
    """A random Llama of about a gibibyte as float32, with a tokenizer;
    made once, in a process of its own."""
    path = FOLDER / f"load-{stored}"
    if not (path / "model.safetensors").is_file():
        source = f"from bench.load_models import make; make({stored!r})"
        subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True)
    return path


def make(stored: str) -> None:
    """Write the model's folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = FOLDER / f"load-{stored}"
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shape = SHAPE | (
        {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
        if stored == "tiny"
        else {}
    )
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
    LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((folder("small") / name).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
