"""Control tokens that a conversation spells are letters: only what the chat template writes begins and ends turns.

A spelled token's first character is exchanged for a private one while the template renders. What then still spells a
control token is the template's own. It is encoded by a second tokenizer, in which these tokens have names that nobody
can guess, so that the text around them is encoded exactly as always, and their old names are text like any other.
"""

import json
import logging
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from tokenizers import Tokenizer

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import Message

log = logging.getLogger(__name__)

PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters that stand for none."""

Tokens = Mapping[str, Collection[int]]
"""First characters, with the lengths of the tokens that begin so."""


def encoded(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """Tokens of `text`, while other threads go on: of the tokenizer's ways only those for several texts let them."""
    [found] = tokenizer.encode_batch_fast([text], add_special_tokens=special)
    return list(found.ids)


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation in which no control token is spelled, and the private characters that stand for first ones."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    options: dict[str, Any]
    originals: Mapping[str, str]


class Letters:
    """Of one tokenizer and the texts of its chat templates. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *templates: str) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._templates = "\n".join(templates)
        special = {token.content for token in added.values() if token.special and token.content}
        # What a template writes is control too, special or not: `</tool_response>` ends what a tool said.
        self._control = special | {
            token.content
            for token in added.values()
            if not token.content.isspace() and token.content in self._templates
        }
        self._special = _by_first(special)
        self._any = _by_first(self._control)
        self._normalized = any(token.special and token.normalized for token in added.values())
        self._ids = {token.content: number for number, token in added.items() if token.content in self._control}
        self._renamed: tuple[Tokenizer, dict[str, str]] | None = None
        self._failed = False
        self._lock = Lock()

    def mark(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], options: Mapping[str, Any]
    ) -> Marked | None:
        """None where nothing spells a control token, which is nearly always.

        In what the assistant said, only special tokens count: it may well have written the others itself.
        """
        rules = [self._special if message["role"] == "assistant" else self._any for message in messages]
        parts = [*zip(messages, rules, strict=True), (list(tools), self._any), (dict(options), self._any)]
        if not any(self._spells(text, tokens) for value, tokens in parts for text in _texts(value)):
            return None
        used = {character for text in (self._templates, *_texts([value for value, _ in parts])) for character in text}
        free = (chr(number) for number in PRIVATE[2:] if chr(number) not in used)
        private = dict(zip(self._any, free, strict=False))
        marker = _Marker(self._control, private)
        *marked, marked_tools, marked_options = (marker(value, tokens) for value, tokens in parts)
        return Marked(marked, marked_tools, marked_options, {character: first for first, character in private.items()})

    def prepare(self) -> None:
        """Make the second tokenizer, which takes tenths of a second, before a conversation needs it."""
        with self._lock:
            if self._renamed is None and not self._failed:
                try:
                    self._renamed = self._rename()
                except Exception:
                    log.exception("no second tokenizer can be made: messages that spell control tokens are refused")
                    self._failed = True

    def encode(self, text: str, originals: Mapping[str, str]) -> list[int]:
        """Tokens of what the template made of a marked conversation. Raises `InvalidRequest` if it can't."""
        tokenizer, names = self._second()
        parts = []
        at = 0
        for start, token in _found(text, self._any, self._control):
            if start >= at:
                parts += [text[at:start], names[token]]
                at = start + len(token)
        plain = "".join([*parts, text[at:]]).translate({ord(private): first for private, first in originals.items()})
        return encoded(tokenizer, plain, special=False)

    def _spells(self, text: str, tokens: Tokens) -> bool:
        if next(_found(text, tokens, self._control), None):
            return True
        normalizer = self._tokenizer.normalizer if self._normalized else None
        if normalizer is None:
            return False
        return next(_found(normalizer.normalize_str(text), tokens, self._control), None) is not None

    def _second(self) -> tuple[Tokenizer, dict[str, str]]:
        self.prepare()
        if self._renamed is None:
            message = "a message spells a control token of this model, which its tokenizer can't read as letters"
            raise InvalidRequest(f"{message}; leave it out", param="messages")
        return self._renamed

    def _rename(self) -> tuple[Tokenizer, dict[str, str]]:
        names = _names(self._ids)
        renamed = Tokenizer.from_str(_renamed(self._tokenizer, names))
        if self._ids != {token: renamed.token_to_id(name) for token, name in names.items()}:
            raise ValueError("under other names the tokens have other ids")
        return renamed, names


def unspelled(tokenizer: Tokenizer) -> str:
    """Its tokenizer.json, with names for special tokens that no text spells: what a grammar writes out is letters."""
    added = tokenizer.get_added_tokens_decoder()
    try:
        return _renamed(tokenizer, _names({token.content: id_ for id_, token in added.items() if token.special}))
    except Exception:
        log.exception("special tokens can't be renamed: a schema that spells one out ends the answer there")
        return str(tokenizer.to_str())


class _Marker:
    """Puts private characters where a text spells a control token."""

    def __init__(self, control: Collection[str], private: Mapping[str, str]) -> None:
        self._control = control
        self._private = private

    def __call__(self, value: Any, tokens: Tokens) -> Any:
        match value:
            case str():
                return self._text(value, tokens)
            case dict():
                return {self(name, tokens): self(inner, tokens) for name, inner in value.items()}
            case list() | tuple():
                return [self(inner, tokens) for inner in value]
        return value

    def _text(self, text: str, tokens: Tokens) -> str:
        starts = [start for start, _ in _found(text, tokens, self._control)]
        if not starts:
            return text
        characters = list(text)
        for start in starts:
            characters[start] = self._private[characters[start]]
        return "".join(characters)


def _by_first(tokens: Collection[str]) -> dict[str, list[int]]:
    firsts: dict[str, set[int]] = {}
    for token in tokens:
        firsts.setdefault(token[0], set()).add(len(token))
    return {first: sorted(lengths, reverse=True) for first, lengths in sorted(firsts.items())}


def _found(text: str, tokens: Tokens, control: Collection[str]) -> Iterator[tuple[int, str]]:
    """Where a token is spelled, and the longest that is; they may overlap."""
    if not tokens:
        return
    for candidate in re.finditer(f"[{re.escape(''.join(tokens))}]", text):
        start = candidate.start()
        for length in tokens[candidate[0]]:
            if (spelled := text[start : start + length]) in control:
                yield start, spelled
                break


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, inner in value.items():
                yield from _texts(name)
                yield from _texts(inner)
        case list() | tuple():
            for inner in value:
                yield from _texts(inner)


def _names(ids: Mapping[str, int]) -> dict[str, str]:
    """Names that nobody can guess, for tokens by their text."""
    nonce = secrets.token_hex(16)
    return {token: f"{chr(PRIVATE[0])}{nonce}{number}{chr(PRIVATE[1])}" for token, number in ids.items()}


def _renamed(tokenizer: Tokenizer, names: Mapping[str, str]) -> str:
    """The same tokenizer.json, with other names for some of its added tokens."""
    whole = json.loads(tokenizer.to_str())
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = whole["model"]
    if isinstance(vocabulary := model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:  # Of Unigram: pieces with their scores.
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # A token of letters that makes one of them would have no name.
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _joined(merge) not in names]
    return json.dumps(whole)


def _joined(merge: str | list[str]) -> str:
    return "".join(merge.split(" ")) if isinstance(merge, str) else "".join(merge)
