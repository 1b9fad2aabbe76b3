"""`hack/bench evaluation`: two small tasks of lm-evaluation-harness, asked of the runtime over HTTP
(`local-completions`, `local-chat-completions`) and of Transformers in the harness itself (`hf`).

Their data lies beside this file, as no hub is asked for any. Figures must be equal to the last digit;
the table is for docs/clients.md. Without a model it is SmolLM2-135M-Instruct.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.servers import QUIET, Ours
from devstack import smollm
from devstack.cache import CACHE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HARNESS = Path(os.environ.get("LLM_OPERATOR_LM_EVAL") or CACHE / "bench" / "lm-eval")
"""The folder that `bench/lm-eval` fills."""
CHOICES = "choices"
ANSWERS = "answers"


class Served(Ours):
    """The runtime of this checkout."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(ROOT / "runtime")}


@dataclass(frozen=True)
class Found:
    """What one run of the harness found."""

    figures: Mapping[str, float]
    """By task and metric."""
    answers: Mapping[str, Any]
    """By task and sample: texts, or log-likelihoods and whether they are the greatest ones."""


def main() -> int:
    """Ask, compare and print. Returns 1 if a figure differs."""
    parser = argparse.ArgumentParser(prog="hack/bench evaluation", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="the folder of a model")
    folder = parser.parse_args().model or smollm.make(CACHE / "models" / "smollm2-135m-instruct")
    server = Served(folder)
    server.prepare()
    process = server.start()
    try:
        compared = list(_compared(server, folder))
    finally:
        process.stop()
    print("| backend | figure | by it | by `hf` |\n| --- | --- | --- | --- |")
    for title, expected, actual in compared:
        for figure, value in actual.figures.items():
            print(f"| {title} | {figure} | {value} | {expected.figures[figure]} |")
    for title, expected, actual in compared:
        print(f"{title}: {_closeness(expected, actual)}")
    return any(
        value != expected.figures[figure]
        for _, expected, actual in compared
        for figure, value in actual.figures.items()
    )


def _compared(server: Served, folder: Path) -> Iterator[tuple[str, Found, Found]]:
    """(how the runtime was asked, what Transformers found, what was found over HTTP)."""
    own = {"pretrained": str(folder), "dtype": "float32"}
    plain = ask("hf", own, (CHOICES, ANSWERS), server.scratch)
    chats = ask("hf", own, (ANSWERS,), server.scratch, chat=True)
    remote = {"model": server.name, "num_concurrent": 8}
    completions = {**remote, "base_url": f"{server.url}/v1/completions"}
    local = {**completions, "tokenizer": str(folder), "tokenizer_backend": "huggingface"}
    there = {**completions, "tokenizer_backend": "remote"}
    chat = {**remote, "base_url": f"{server.url}/v1/chat/completions", "tokenizer_backend": None}
    both = (CHOICES, ANSWERS)
    name = "local-completions"
    yield f"`{name}`", plain, ask(name, local, both, server.scratch)
    yield f"`{name}`, tokens by `/tokenize`", plain, ask(name, there, (CHOICES,), server.scratch)
    name = "local-chat-completions"
    yield f"`{name}`", chats, ask(name, chat, (ANSWERS,), server.scratch, chat=True)


def ask(
    backend: str,
    arguments: Mapping[str, Any],
    names: Sequence[str],
    scratch: Path,
    *,
    chat: bool = False,
) -> Found:
    """Run tasks with a backend of the harness; `chat`: by the model's chat template."""
    out = scratch / "found.json"
    asked = {
        "backend": backend,
        "arguments": dict(arguments),
        "tasks": [_task(name) for name in names],
        "chat": chat,
        "out": str(out),
    }
    own = {"PYTHONPATH": str(HARNESS), "HF_HOME": str(scratch), "TQDM_DISABLE": "1"}
    environment = {**os.environ, **QUIET, **own}
    command = [sys.executable, str(HERE / "ask.py")]
    subprocess.run(command, input=json.dumps(asked), text=True, env=environment, check=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    return Found(found["figures"], found["answers"])


def _task(name: str) -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    files = task["dataset_kwargs"]["data_files"]
    task["dataset_kwargs"]["data_files"] = {
        split: str(HERE / file) for split, file in files.items()
    }
    return task


def _closeness(expected: Found, actual: Found) -> str:
    pairs = [
        pair
        for sample, answer in actual.answers.items()
        for pair in zip(_flat(expected.answers[sample]), _flat(answer), strict=True)
    ]
    apart = [math.fabs(a - b) for a, b in pairs if isinstance(a, float)]
    same = [a == b for a, b in pairs if isinstance(a, str)]
    said = []
    if apart:
        said.append(f"{len(apart)} log-likelihoods, at most {max(apart):.1e} apart")
    if same:
        said.append(f"{sum(same)} of {len(same)} answers the same text")
    return "; ".join(said)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    else:
        yield value


if __name__ == "__main__":
    sys.exit(main())
