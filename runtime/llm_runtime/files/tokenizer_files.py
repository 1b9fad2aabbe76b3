"""Loads a folder's tokenizer from tokenizer.json,
and compares it with the one that Transformers would build."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llm_runtime.errors import ModelCorrupt, ModelUnsupported

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Names under which chat templates may use a tokenizer's special tokens."""

FILE = "tokenizer.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
log = logging.getLogger(__name__)

PROBES = (
    "the capital of France is Paris", " a  b\n\n c\td", "1 2 12 345 6.7e8", "Grüße, 世界! 👩‍👩‍👧 don't",
    "def f(x):\n    return {'a': [x, 1]}\n", "hello there{end}\nhow are you{end} fine",
)  # fmt: skip
"""Texts on which different tokenizers usually disagree. `{end}` stands for the end token."""


def file_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in tokenizer.json, plus tokens that only the files beside it name;
    None without that file.

    Raises ModelCorrupt if the file is not JSON,
    ModelUnsupported if this version of tokenizers can't read it.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        description = read_json(file)
        known = sorted(key for key in ("model", "pre_tokenizer", "decoder") if key in description)
        raise ModelUnsupported(
            f"{file} is JSON, but not a tokenizer that this version of tokenizers can read "
            f"({', '.join(known) or 'no model'}): {error}; "
            "save it again with the version of Transformers of this runtime"
        ) from error
    _add_named(tokenizer, folder)
    # Padding and truncation stored in a tokenizer.json would silently change prompts.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def no_tokenizer(folder: Path, reason: object = "") -> ModelUnsupported:
    """The error for a folder from which no tokenizer can be built, with advice."""
    way_out = "load it with AutoTokenizer where it works, and save it beside the model with save_pretrained"
    if only := [name for name in SENTENCEPIECE if (folder / name).is_file()]:
        return ModelUnsupported(
            f"{folder} has its tokenizer only as {only[0]}, and this runtime has no sentencepiece: {way_out}, "
            f"which writes {FILE} where sentencepiece is installed"
        )
    because = f" ({_line(reason)})" if reason else ""
    return ModelUnsupported(
        f"{folder} has no {FILE}, and no other files that make a tokenizer{because}: {way_out}"
    )


def check_made(folder: Path, made: Tokenizer) -> None:
    """Check a tokenizer that was built without tokenizer.json against the folder's files.
    Raises ModelUnsupported.

    From an empty folder, Transformers silently builds an empty tokenizer.
    """
    known = made.get_vocab()
    listed = _listed(folder)
    other = [token for token, number in listed.items() if known.get(token) != number]
    if other:
        raise no_tokenizer(
            folder, f"{len(other)} of {len(listed)} tokens get other ids, {other[0]!r} for one"
        )
    if made.decode(made.encode(PROBES[0]).ids).strip().lower() != PROBES[0].lower():
        raise no_tokenizer(folder, "" if listed else "nothing in it is a vocabulary")


def _listed(folder: Path) -> dict[str, Any]:
    """Token ids from a vocabulary file; empty without one."""
    if vocabulary := read_json(folder / "vocab.json"):
        return vocabulary
    lines = folder / "vocab.txt"
    if not lines.is_file():
        return {}
    return {
        token: number for number, token in enumerate(lines.read_text(encoding="utf-8").splitlines())
    }


def special_texts(folder: Path) -> dict[str, str]:
    """The special tokens by role (`eos_token`, …)."""
    settings = read_json(folder / "special_tokens_map.json") | read_json(
        folder / "tokenizer_config.json"
    )
    return {
        name: _content(settings[name]) for name in SPECIAL_TOKENS if _content(settings.get(name))
    }


def first_difference(one: Tokenizer, other: Tokenizer, end: str = "") -> str:
    """The first probe that two tokenizers encode or decode differently; "" if they agree on all."""
    for probe in PROBES:
        text = probe.replace("{end}", end)
        ids = one.encode(text).ids
        if ids != other.encode(text).ids or one.decode(ids) != other.decode(ids):
            return text
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file. Raises ModelCorrupt if it is not JSON."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path} is not JSON: {error}; upload the file again") from error
    return content if isinstance(content, dict) else {}


def _add_named(tokenizer: Tokenizer, folder: Path) -> None:
    """Add tokens that only tokenizer_config.json or added_tokens.json names, as Transformers does.

    Raises ModelUnsupported if the tokenizer gives them other ids.
    """
    present = {str(token.content) for token in tokenizer.get_added_tokens_decoder().values()}
    for number, token in sorted(_named(folder), key=lambda named: named[0]):
        text = str(token.content)
        if text in present:
            continue
        if tokenizer.token_to_id(text) not in (None, number):
            log.warning(
                "the tokenizer's settings give a token another id than tokenizer.json, which is used",
                extra={
                    "token": text,
                    "settings_id": number,
                    "file_id": tokenizer.token_to_id(text),
                },
            )
            continue
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        added = tokenizer.token_to_id(text)
        if added != number:
            raise ModelUnsupported(
                f"{folder}: the tokenizer's settings say that {text!r} is token {number}, but {FILE} has no such token "
                f"and would number it {added}: the model would get tokens that it was not trained on; "
                "save both files together"
            )


def _named(folder: Path) -> Iterable[tuple[int, AddedToken]]:
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for number, token in decoder.items():
            if str(number).isdecimal() and isinstance(token, Mapping) and _content(token):
                flags = {
                    flag: bool(token.get(flag, False))
                    for flag in ("lstrip", "rstrip", "single_word", "special")
                }
                yield (
                    int(number),
                    AddedToken(
                        _content(token), normalized=bool(token.get("normalized", True)), **flags
                    ),
                )
        return
    for text, number in read_json(folder / "added_tokens.json").items():
        if isinstance(number, int):
            yield number, AddedToken(text, normalized=False)


def _content(token: Any) -> str:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _line(reason: object) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:300]
