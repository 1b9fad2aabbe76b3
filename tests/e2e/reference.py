"""What Transformers itself would answer: the judge of every greedy text in these tests."""

from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=4)
def _load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


def greedy(folder: Path, prompt: str, max_tokens: int) -> str:
    """The greedy continuation of `prompt` by `model.generate`, without special tokens."""
    tokenizer, model = _load(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
    return str(
        tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    )
