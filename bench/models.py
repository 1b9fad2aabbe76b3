"""The model folders for all servers.
They have no end-of-sequence token, so that every server generates `max_tokens`.

`smollm2` is SmolLM2-135M-Instruct with its own weights, `small` a random Llama of 31.6 M parameters
each of whose tokens is one English word. Made once, below the project's cache.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devstack.cache import CACHE

FOLDER = CACHE / "bench" / "models"
MAX_LENGTH = 2048
"""Tokens of prompt and answer, for every server."""

SMALL_VOCABULARY = 8192
SMALL = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": MAX_LENGTH, "tie_word_embeddings": False,
}  # fmt: skip
WORD = re.compile(r"Ġ[A-Za-z]+")


def folder(name: str) -> Path:
    """The folder of model `name`, created if needed.
    An unknown name is taken for a folder of your own."""
    if name not in MAKERS:
        return Path(name)
    path = FOLDER / name
    if not (path / "config.json").is_file():
        shutil.rmtree(path, ignore_errors=True)
        MAKERS[name](path)
    return path


def words(path: Path) -> list[str]:
    """Words that are a single token after a space, in the order of their ids."""
    return [symbol.removeprefix("Ġ") for symbol in _words(path)]


def _words(path: Path) -> list[str]:
    vocabulary = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return [
        symbol
        for symbol in sorted(vocabulary, key=vocabulary.__getitem__)
        if WORD.fullmatch(symbol)
    ]


def _smollm2(path: Path) -> None:
    from devstack import smollm

    source = smollm.make(CACHE / "models" / "smollm2-135m-instruct")
    path.mkdir(parents=True)
    for file in source.iterdir():
        if not file.name.endswith(".json"):
            os.link(file, path / file.name)
    shutil.copy2(source / "tokenizer.json", path)
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        settings = json.loads((source / name).read_text(encoding="utf-8"))
        (path / name).write_text(json.dumps(endless(settings), indent=2), encoding="utf-8")


def endless(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a model or tokenizer without an end of sequence."""
    return {
        name: value for name, value in settings.items() if name not in {"eos_token", "eos_token_id"}
    } | ({"eos_token_id": None} if "model_type" in settings else {})


def _small(path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path.mkdir(parents=True)
    _small_tokenizer(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SMALL_VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        dtype="float32",
        **SMALL,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)


def _small_tokenizer(path: Path) -> None:
    """A vocabulary of words, SmolLM2's first ones:
    whatever a random model answers is text at every token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    known = _words(folder("smollm2"))[: SMALL_VOCABULARY - 1]
    vocabulary = {word: index for index, word in enumerate(["<unk>", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


MAKERS: dict[str, Callable[[Path], None]] = {"smollm2": _smollm2, "small": _small}
