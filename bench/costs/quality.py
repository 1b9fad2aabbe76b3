"""What quantised weights cost in quality: perplexity, and answers that are still the same.

`python -m bench.costs.quality [--model FOLDER] [--tokens 4096]` loads the model in each way, as a server
does, and prints a Markdown table. Text: docstrings of Python's standard library, and files of docs/,
in windows of 256 tokens. Answers: greedy, 32 tokens, to 20 short questions.
"""

import argparse
import ast
import math
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "runtime")]

from llm_runtime.machine.threads import configure_threads  # noqa: E402

configure_threads()

import torch  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.loading.load import load  # noqa: E402

MODEL = Path.home() / ".cache/llm-operator/models/smollm2-135m-instruct"
WINDOW = 256
ANSWER_TOKENS = 32
WAYS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32 with int8 weights": {"dtype": "float32", "quantization": "int8"},
}
DOCS = ("architecture.md", "operations.md", "decisions.md")
QUESTIONS = (
    "What is the capital of France?", "Name three colours.", "How many days has a week?",
    "What do bees make?", "Who wrote Hamlet?", "What is 2 + 2?", "Name a large ocean.",
    "What is water made of?", "Which animal barks?", "What is the opposite of hot?",
    "Write a short poem about rain.", "What is a prime number?", "Name a programming language.",
    "How do plants get energy?", "What is the largest planet?", "When do leaves fall?",
    "What is a noun?", "How do you make tea?", "Name a musical instrument.", "Why is the sky blue?",
)  # fmt: skip


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, by the modules' names."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if text := ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))):
            yield text


def perplexity(model: Any, ids: list[int]) -> float:
    """Exponential of the mean loss of each token but a window's first."""
    losses = []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        logits = model(input_ids=window).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[0, 1:]).item())
    return math.exp(sum(losses) / len(losses))


def answers(model: Any, tokenizer: Any) -> list[list[int]]:
    """The tokens of each answer."""
    made = []
    for question in QUESTIONS:
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
        made.append(out[0, ids.shape[1] :].tolist())
    return made


def same(tokens: list[int], reference: list[int]) -> int:
    """How many tokens are equal before the first other one."""
    pairs = enumerate(zip(tokens, reference, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(reference))


def main() -> None:
    """Load, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = (
        "\n\n".join(docstrings()),
        "\n\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in DOCS),
    )
    encoded = [tokenizer(text)["input_ids"][: options.tokens] for text in texts]
    reference: list[list[int]] = []
    print("| weights | perplexity, standard library | perplexity, docs/ | equal answers |")
    print("| --- | --- | --- | --- |")
    for name, settings in WAYS.items():
        engine = EngineConfig.model_validate({"device": "cpu", **settings})
        model = load(options.model, engine, ModelConfig(name="quality")).model
        with torch.inference_mode():
            found = [perplexity(model, ids) for ids in encoded]
            made = answers(model, tokenizer)
        reference = reference or made
        counts = [same(tokens, other) for tokens, other in zip(made, reference, strict=True)]
        whole = sum(count == ANSWER_TOKENS for count in counts)
        mean = sum(counts) / len(counts)
        print(
            f"| {name} | {found[0]:.3f} | {found[1]:.3f} | {whole} of {len(counts)},"
            f" first {mean:.1f} of {ANSWER_TOKENS} tokens |",
            flush=True,
        )


if __name__ == "__main__":
    main()
