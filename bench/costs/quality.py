"""What quantised weights cost in quality: perplexity, and answers that are still the same.

`python -m bench.costs.quality [--model smollm2] [--windows 16] [--dry]` loads the model in each way
and packs it, as a server does. Written to docs/benchmarks/quality.json and quality.md.
"""

import argparse
import ast
import hashlib
import json
import math
import platform
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "hack")]

from llm_runtime.machine.threads import configure_threads  # noqa: E402

configure_threads()

import torch  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from bench import models  # noqa: E402
from bench.machine import commit, machine  # noqa: E402
from bench.report import FOLDER, table  # noqa: E402
from llm_runtime.compute.embeddings import shrink_embeddings  # noqa: E402
from llm_runtime.compute.linears import pack_linears  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.loading.load import load  # noqa: E402

WINDOW = 512
ANSWER_TOKENS = 32
MIB = 1 << 20
WAYS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "int4": {"dtype": "float32", "quantization": "int4"},
}
REFERENCE = next(iter(WAYS))
MOST = {"int8": 0.005, "int4": 0.05}
"""Bounds of the perplexity's rise over float32's."""
QUESTIONS = (
    "What is the capital of France?", "Name three colours.", "How many days has a week?",
    "What do bees make?", "Who wrote Hamlet?", "What is 2 + 2?", "Name a large ocean.",
    "What is water made of?", "Which animal barks?", "What is the opposite of hot?",
    "Write a short poem about rain.", "What is a prime number?", "Name a programming language.",
    "How do plants get energy?", "What is the largest planet?", "When do leaves fall?",
    "What is a noun?", "How do you make tea?", "Name a musical instrument.", "Why is the sky blue?",
)  # fmt: skip
METHOD = """\
Two texts that come with CPython: what `help()` says of the language, the topics of `pydoc_data.topics` in the order of
their names; and the docstrings of the standard library's modules. Which layers int4 leaves to int8, and how scales are
looked for, was chosen by some windows of the first text, so the second is the one to judge by. Windows of {window}
tokens lie evenly in each; each token but a window's first counts. "Same next token" is how often the likeliest next
token is float32's. Answers are greedy, {answer} tokens without an end, to {questions} short questions with the chat
template. Each way is loaded and packed as a server does; its layers run in Transformers' own forward pass."""


@dataclass
class Outcome:
    """What one way computed."""

    losses: dict[str, list[float]]
    """By text."""
    likeliest: list[int]
    answers: list[list[int]]
    weights_mib: float


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2, small, or a folder")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    before = machine()
    texts = {
        "help": "\n\n".join(topics[name] for name in sorted(topics)),
        "docstrings": "\n\n".join(docstrings()),
    }
    outcomes = measure(models.folder(options.model), texts, options.windows)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": before,
        "model": Path(options.model).name, "windows": options.windows,
        "python": platform.python_version(),
        "sha256": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        "figures": figures(outcomes),
    }  # fmt: skip
    print(page(record))
    if not options.dry:
        (FOLDER / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
        (FOLDER / "quality.md").write_text(page(record))


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, by the modules' names."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if text := ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))):
            yield text


def measure(folder: Path, texts: dict[str, str], windows: int) -> dict[str, Outcome]:
    """Each way's losses and answers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = {name: _windows(tokenizer, text, windows) for name, text in texts.items()}
    outcomes = {}
    for name, settings in WAYS.items():
        engine = EngineConfig.model_validate({"device": "cpu", **settings})
        model = load(folder, engine, ModelConfig(name="quality")).model
        size = weights_mib(model)  # Packed ones are in oneDNN's own form, which tells no size.
        pack_linears(model)
        shrink_embeddings(model)
        with torch.inference_mode():
            outcomes[name] = outcome(model, tokenizer, pieces, size)
        shown = ", ".join(f"{perplexity(found):.3f}" for found in outcomes[name].losses.values())
        print(f"{name}: {shown}", file=sys.stderr, flush=True)
    return outcomes


def _windows(tokenizer: Any, text: str, windows: int) -> list[Any]:
    ids = torch.tensor(tokenizer(text)["input_ids"])
    starts = torch.linspace(0, len(ids) - WINDOW, windows).long().tolist()
    return [ids[start : start + WINDOW] for start in starts]


def weights_mib(model: Any) -> float:
    """Size of the model's weights; what two modules share counts once."""
    tensors = {t.data_ptr(): int(t.nbytes) for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values()) / MIB


def outcome(model: Any, tokenizer: Any, pieces: dict[str, list[Any]], size: float) -> Outcome:
    """The model's losses and likeliest tokens on the texts, and its answers."""
    losses: dict[str, list[float]] = {name: [] for name in pieces}
    likeliest: list[int] = []
    for name, windows in pieces.items():
        for piece in windows:
            logits = model(input_ids=piece.unsqueeze(0)).logits[0, :-1].float()
            found = torch.nn.functional.cross_entropy(logits, piece[1:], reduction="none")
            losses[name] += found.tolist()
            likeliest += logits.argmax(dim=1).tolist()
    answers = [answer(model, tokenizer, question) for question in QUESTIONS]
    return Outcome(losses, likeliest, answers, size)


def answer(model: Any, tokenizer: Any, question: str) -> list[int]:
    """The tokens of a greedy answer."""
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER_TOKENS,
        min_new_tokens=ANSWER_TOKENS,
        do_sample=False,
    )
    made: list[int] = out[0, ids.shape[1] :].tolist()
    return made


def perplexity(losses: list[float]) -> float:
    """Exponential of the mean loss."""
    return math.exp(sum(losses) / len(losses))


def same(tokens: list[int], reference: list[int]) -> int:
    """How many tokens are equal before the first other one."""
    pairs = enumerate(zip(tokens, reference, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(reference))


def figures(outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """What each way costs, beside the reference."""
    reference = outcomes[REFERENCE]
    found = {}
    for name, each in outcomes.items():
        counts = [same(a, b) for a, b in zip(each.answers, reference.answers, strict=True)]
        pairs = list(zip(each.likeliest, reference.likeliest, strict=True))
        found[name] = {
            "weights_mib": round(each.weights_mib),
            "perplexity": {text: round(perplexity(own), 3) for text, own in each.losses.items()},
            "rise": {
                text: round(perplexity(own) / perplexity(reference.losses[text]) - 1, 5)
                for text, own in each.losses.items()
            },
            "same_next": round(sum(a == b for a, b in pairs) / len(pairs), 4),
            "same_answers": sum(count == ANSWER_TOKENS for count in counts),
            "same_tokens": round(sum(counts) / len(counts), 1),
        }
    return found


def page(record: dict[str, Any]) -> str:
    """The page in docs/benchmarks."""
    texts = record["sha256"]
    head = (
        "", "weights, MiB", *(f"perplexity, {name}" for name in texts), "bound", "met", "same next token",
        "same answers", f"first same tokens of {ANSWER_TOKENS}",
    )  # fmt: skip
    rows = [
        (
            name,
            f"{row['weights_mib']:.0f}",
            *(
                f"{row['perplexity'][text]:.3f}"
                + ("" if name == REFERENCE else f" ({row['rise'][text]:+.2%})")
                for text in texts
            ),
            f"{MOST[name]:.1%}" if name in MOST else "",
            ("yes" if max(row["rise"].values()) <= MOST[name] else "**no**")
            if name in MOST
            else "",
            f"{row['same_next']:.1%}",
            f"{row['same_answers']} of {len(QUESTIONS)}",
            f"{row['same_tokens']:.1f}",
        )
        for name, row in record["figures"].items()
    ]
    about = record["machine"]
    parts = (
        "# Quality of quantised weights",
        "Made by `python -m bench.costs.quality` from [quality.json](quality.json); not written by hand."
        f" {record['model']}, {record['date']}, commit {record['commit']}, {about['cpu']}.",
        table(head, rows),
        METHOD.format(window=WINDOW, answer=ANSWER_TOKENS, questions=len(QUESTIONS)),
        f"CPython {record['python']}, {record['windows']} windows of each text. SHA-256: "
        + ", ".join(f"{name} `{digest}`" for name, digest in texts.items())
        + ".",
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
