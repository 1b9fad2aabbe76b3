"""Incremental detokenization: the text and the bytes that each token adds,
so that the parts add up to the whole.

Most tokenizers have a decoder of a known kind (GPT-2's byte letters, or SentencePiece with byte
fallback). Then every token has bytes of its own, and a UTF-8 decoder joins them. For others, the
tokenizers library decodes the stream.
"""

import codecs
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CONTEXT_TOKENS = 8
"""Tokens of the prompt that are decoded together with the next one,
which may depend on them (a leading space)."""
ALL_SPACES = 1 << 16
BYTES_KEPT = 1 << 16


class Text(Protocol):
    """The text of one sequence as its tokens come."""

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes that this token would add here; none for a hidden special token."""
        ...

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Steps:
    """What a tokenizer's decoder does, according to its description."""

    byte_level: bool = False
    """Each letter of a token stands for a byte."""
    space: str = ""
    """The character that stands for a space; "" if none does."""
    byte_fallback: bool = False
    """Tokens like <0x0A> are bytes."""
    strips: int = 0
    """How many leading spaces are removed from a text's first token."""


class Spelling:
    """How a tokenizer's tokens are written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        decoder = tokenizer.decoder
        # Only the decoder is described: describing the whole tokenizer takes half a second.
        self.steps = steps_of(json.loads(decoder.__getstate__()) if decoder is not None else None)
        added = tokenizer.get_added_tokens_decoder()
        self.special = {
            number: str(token.content) for number, token in added.items() if token.special
        }
        self._added = frozenset(added)
        self.control_ids: Mapping[str, int] = {
            str(token.content): number
            for number, token in added.items()
            # llguidance takes <…> for special tokens, too,
            # and does not match them by their letters in a grammar.
            if token.special
            or (str(token.content).startswith("<") and str(token.content).endswith(">"))
        }
        self.own_bytes = lru_cache(maxsize=BYTES_KEPT)(self._own_bytes)

    def text(self, prompt: Sequence[int] = (), shown: Collection[int] = ()) -> Text:
        """For one sequence, which continues `prompt` if there is one.
        Special tokens not in `shown` are hidden."""
        if self.steps is None:
            return StreamedText(self, prompt, shown)
        return SpelledText(
            self, shown, begins=not any(token not in self.special for token in prompt)
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that a token adds in the middle of a text; for a special token, its name."""
        if (name := self.special.get(token_id)) is not None:
            return name.encode()
        return self.own_bytes(token_id)

    def _own_bytes(self, token_id: int) -> bytes:
        if self.steps is None:
            return self._difference(token_id)
        token = self.tokenizer.id_to_token(token_id) or ""
        if self.steps.byte_level and token_id in self._added:
            return (
                token.encode()
            )  # Added tokens are matched literally: their letters do not stand for bytes.
        if self.steps.byte_level:
            table = byte_of_letter()
            return (
                bytes(table[letter] for letter in token)
                if all(map(table.__contains__, token))
                else token.encode()
            )
        if self.steps.byte_fallback and (byte := _fallback_byte(token)) is not None:
            return bytes((byte,))
        return (token.replace(self.steps.space, " ") if self.steps.space else token).encode()

    def _difference(self, token_id: int) -> bytes:
        """What the token adds after itself:
        an unknown decoder may write a text's first token differently."""
        once = str(self.tokenizer.decode([token_id], skip_special_tokens=False))
        twice = str(self.tokenizer.decode([token_id, token_id], skip_special_tokens=False))
        return (twice[len(once) :] if twice.startswith(once) else once).encode()


class SpelledText:
    """The text of tokens that have bytes of their own."""

    def __init__(self, spelling: Spelling, shown: Collection[int], *, begins: bool) -> None:
        self._spelling = spelling
        self._shown = frozenset(shown)
        self._strips = spelling.steps.strips if begins and spelling.steps is not None else 0
        self._decoder = _decoder(
            byte_for_byte=spelling.steps is not None and not spelling.steps.byte_level
        )

    def bytes_of(self, token_id: int) -> bytes:
        if token_id in self._spelling.special:
            return self._spelling.token_bytes(token_id) if token_id in self._shown else b""
        own = self._spelling.own_bytes(token_id)
        return own[min(self._strips, len(own) - len(own.lstrip(b" "))) :]

    def push(self, token_id: int) -> str:
        if token_id in self._spelling.special and token_id not in self._shown:
            return ""
        own = self.bytes_of(token_id)
        self._strips = 0
        return self._decoder.decode(own)

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StreamedText:
    """The text of tokens that only the tokenizers library can decode."""

    def __init__(self, spelling: Spelling, prompt: Sequence[int], shown: Collection[int]) -> None:
        self._spelling = spelling
        self._shown = frozenset(shown)
        self._tokenizer = spelling.tokenizer
        self._before = [
            token for token in prompt[-CONTEXT_TOKENS:] if token not in spelling.special
        ]
        self._stream = DecodeStream(ids=self._before, skip_special_tokens=True)
        self._pending: list[int] = []
        """Tokens since the last text: those of an unfinished character."""

    def bytes_of(self, token_id: int) -> bytes:
        if token_id in self._spelling.special and token_id not in self._shown:
            return b""
        if self._before or token_id in self._spelling.special:
            return self._spelling.token_bytes(token_id)
        return str(self._tokenizer.decode([token_id], skip_special_tokens=True)).encode()

    def push(self, token_id: int) -> str:
        if token_id in self._spelling.special:
            return (
                self.flush() + self._spelling.special[token_id] if token_id in self._shown else ""
            )
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id) or ""
        except Exception:  # DecodeStream fails on some byte sequences ("invalid prefix"), but the answer must go on.
            return self.flush()
        if text:
            self._before = [*self._before, *self._pending][-CONTEXT_TOKENS:]
            self._pending = []
        return str(text)

    def flush(self) -> str:
        pending = self._pending
        self._pending = []
        if not pending:
            return ""
        before = (
            str(self._tokenizer.decode(self._before, skip_special_tokens=True))
            if self._before
            else ""
        )
        whole = str(self._tokenizer.decode([*self._before, *pending], skip_special_tokens=True))
        self._before = [*self._before, *pending][-CONTEXT_TOKENS:]
        # The new stream knows the tokens before,
        # or it would decode the next word as the first of a text.
        self._stream = DecodeStream(ids=self._before, skip_special_tokens=True)
        return whole[len(before) :] if whole.startswith(before) else whole


def steps_of(decoder: dict[str, Any] | None) -> Steps | None:
    """What a decoder does; None if it is of an unknown kind."""
    if decoder is None:
        return None  # The library joins such tokens with spaces.
    parts = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    found: dict[str, Any] = {}
    for part in parts:
        step = _step(part)
        if step is None:
            return None
        found |= step
    return Steps(**found) if found.get("byte_level") or found.get("space") else None


def _step(part: dict[str, Any]) -> dict[str, Any] | None:
    match part:
        case {"type": "ByteLevel"}:
            return {"byte_level": True}
        case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "}:
            return {"space": space}
        case {"type": "Metaspace", "replacement": str(space)}:
            return {
                "space": space,
                "strips": 0 if part.get("prepend_scheme", "always") == "never" else ALL_SPACES,
            }
        case {"type": "ByteFallback"}:
            return {"byte_fallback": True}
        case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if start <= 1:
            return {"strips": start}
        case {"type": "Fuse"}:
            return {}
    return None


@lru_cache(maxsize=1)
def byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet (Radford 2019, `bytes_to_unicode`): printable bytes stand for themselves.

    The other bytes are numbered in order and stand at U+0100 and after.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def _fallback_byte(token: str) -> int | None:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each invalid byte,
    as the tokenizers library's ByteFallback decoder writes them."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("llm_runtime.each_byte", _each_byte)


def _decoder(*, byte_for_byte: bool) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(
        "llm_runtime.each_byte" if byte_for_byte else "replace"
    )
