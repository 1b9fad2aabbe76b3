"""Keeps a conversation from forging control tokens:
text that spells one is encoded as plain letters.

Only the chat template may begin and end turns. So, while the template renders, the first character
of each spelled token in the conversation is replaced by a private-use one. Control tokens in the
result then come from the template. A second tokenizer encodes the result. In it, control tokens
have unguessable names, which replace the template's tokens. The private characters are turned back.
So whatever the conversation spelled is ordinary text for this tokenizer.
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
"""Code points of a private-use plane of Unicode."""

Tokens = Mapping[str, Collection[int]]
"""Lengths of tokens, by the first character that they begin with."""


def encoded(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """Tokens of `text`. Uses the batch call,
    the only one of the tokenizer that releases the interpreter lock."""
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=special)
    return list(encoding.ids)


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation that spells no control token any more."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    options: dict[str, Any]
    originals: Mapping[str, str]
    """The replaced characters, by the private ones in their place."""


class Letters:
    """Marks and encodes conversations for one tokenizer and its chat templates.
    Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *templates: str) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._templates = "\n".join(templates)
        special = {token.content for token in added.values() if token.special and token.content}
        # Any added token that a template writes is a control token, special or not:
        # `</tool_response>` is not special.
        self._control = special | {
            token.content
            for token in added.values()
            if not token.content.isspace() and token.content in self._templates
        }
        self._special = _by_first(special)
        self._any = _by_first(self._control)
        self._normalized = any(token.special and token.normalized for token in added.values())
        self._ids = {
            token.content: number
            for number, token in added.items()
            if token.content in self._control
        }
        self._renamed: tuple[Tokenizer, dict[str, str]] | None = None
        self._failed = False
        self._lock = Lock()

    def mark(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        options: Mapping[str, Any],
    ) -> Marked | None:
        """Mark the control tokens that the conversation spells;
        None if there are none, the usual case.

        In the assistant's messages only special tokens count: the others may be its own output.
        """
        rules = [
            self._special if message["role"] == "assistant" else self._any for message in messages
        ]
        parts = [
            *zip(messages, rules, strict=True),
            (list(tools), self._any),
            (dict(options), self._any),
        ]
        if not any(self._spells(text, tokens) for value, tokens in parts for text in _texts(value)):
            return None
        used = {
            character
            for text in (self._templates, *_texts([value for value, _ in parts]))
            for character in text
        }
        free = (chr(number) for number in PRIVATE[2:] if chr(number) not in used)
        private = dict(zip(self._any, free, strict=False))
        marker = _Marker(self._control, private)
        *marked, marked_tools, marked_options = (marker(value, tokens) for value, tokens in parts)
        return Marked(
            marked,
            marked_tools,
            marked_options,
            {character: first for first, character in private.items()},
        )

    def prepare(self) -> None:
        """Build the second tokenizer before a conversation needs it. Takes tenths of a second."""
        with self._lock:
            if self._renamed is None and not self._failed:
                try:
                    self._renamed = self._rename()
                except Exception:
                    log.exception(
                        "no second tokenizer can be made: messages that spell control tokens are"
                        " refused"
                    )
                    self._failed = True

    def encode(self, text: str, originals: Mapping[str, str]) -> list[int]:
        """Tokens of a rendered, marked conversation.
        Raises InvalidRequest if there is no second tokenizer."""
        tokenizer, names = self._second()
        parts = []
        at = 0
        for start, token in _found(text, self._any, self._control):
            if start >= at:
                parts += [text[at:start], names[token]]
                at = start + len(token)
        plain = "".join([*parts, text[at:]]).translate(
            {ord(private): first for private, first in originals.items()}
        )
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
            message = (
                "a message spells a control token of this model, which its tokenizer can't encode"
                " as letters"
            )
            raise InvalidRequest(f"{message}; leave it out", param="messages")
        return self._renamed

    def _rename(self) -> tuple[Tokenizer, dict[str, str]]:
        names = _names(self._ids)
        renamed = Tokenizer.from_str(_renamed(self._tokenizer, names))
        if self._ids != {token: renamed.token_to_id(name) for token, name in names.items()}:
            raise ValueError("the renamed control tokens got other ids")
        return renamed, names


def unspelled(tokenizer: Tokenizer) -> str:
    """The tokenizer.json with unguessable names for special tokens,
    so that a grammar's literals are plain letters."""
    added = tokenizer.get_added_tokens_decoder()
    try:
        return _renamed(
            tokenizer, _names({token.content: id_ for id_, token in added.items() if token.special})
        )
    except Exception:
        log.exception(
            "special tokens can't be renamed: an answer ends where its schema spells one out"
        )
        return str(tokenizer.to_str())


class _Marker:
    """Replaces the first character of each spelled control token by its private one,
    in nested values."""

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
    """Positions at which a control token is spelled, with the longest one there.
    They may overlap."""
    if not tokens:
        return
    for candidate in re.finditer(f"[{re.escape(''.join(tokens))}]", text):
        start = candidate.start()
        for length in tokens[candidate[0]]:
            spelled = text[start : start + length]
            if spelled in control:
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
    """An unguessable name for each token, by its text."""
    nonce = secrets.token_hex(16)
    return {
        token: f"{chr(PRIVATE[0])}{nonce}{number}{chr(PRIVATE[1])}" for token, number in ids.items()
    }


def _renamed(tokenizer: Tokenizer, names: Mapping[str, str]) -> str:
    """The tokenizer.json with other names for some of its added tokens."""
    whole = json.loads(tokenizer.to_str())
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = whole["model"]
    if isinstance(vocabulary := model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:  # Unigram models list pieces with their scores.
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # A merge whose result was renamed would refer to a token that no longer exists.
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _joined(merge) not in names]
    return json.dumps(whole)


def _joined(merge: str | list[str]) -> str:
    return "".join(merge.split(" ")) if isinstance(merge, str) else "".join(merge)
