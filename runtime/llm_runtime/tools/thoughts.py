"""Separates a model's thoughts (its reasoning) from its answer.
They are removed before calls are parsed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tags:
    """How one model marks its thoughts."""

    opening: str
    closing: str
    around_answer: tuple[str, ...] = ()
    """Words around the rest of the answer, which are removed."""


TAGS = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    Tags("<seed:think>", "</seed:think>"),
)
"""Tags of, in this order: Qwen, DeepSeek, GLM and many others; Magistral; Command A; Seed-OSS."""


def effort_options(effort: str | None) -> dict[str, Any]:
    """Variables for the chat template, which may not know them;
    "none" also asks Qwen's and others' to leave thinking out."""
    if not effort:
        return {}
    thinking = {"enable_thinking": False} if effort == "none" else {}
    return {"reasoning_effort": effort, **thinking}


class Thoughts:
    """Splits one streamed answer into thoughts and the rest.

    Thoughts are at the beginning of the answer, or follow other thoughts.
    A tag later in the text does not begin any.
    """

    def __init__(self, tags: Tags, *, inside: bool) -> None:
        """`inside`: the prompt already contains the opening tag."""
        self._tags = tags
        self._inside = inside
        self._withheld = ""
        self._fresh = True
        self._trim = False
        self._rest = ""

    def take(self, text: str, *, final: bool) -> tuple[str, str]:
        """(thoughts, the rest) that are certain now."""
        thoughts, rest = self._split(text, final)
        return thoughts, self._bare(rest, final) if self._tags.around_answer else rest

    def _bare(self, text: str, final: bool) -> str:
        """`text` without the words around it."""
        self._rest += text
        for word in self._tags.around_answer:
            self._rest = self._rest.replace(word, "")
        keep = (
            0 if final else max(_held_back(self._rest, word) for word in self._tags.around_answer)
        )
        cut = len(self._rest) - keep
        shown = self._rest[:cut]
        self._rest = self._rest[cut:]
        return shown

    def _split(self, text: str, final: bool) -> tuple[str, str]:
        self._withheld += text
        thoughts = ""
        rest = ""
        while self._withheld:
            if self._inside:
                part, done = self._until(self._tags.closing, final)
                thoughts += part.lstrip("\n") if self._fresh else part
                self._fresh = self._fresh and not part.strip("\n")
                if not done:
                    break
                self._inside = False
                self._fresh = True
                self._trim = True
            elif self._fresh:
                bare = self._withheld.lstrip()
                if bare.startswith(self._tags.opening):
                    self._withheld = bare[len(self._tags.opening) :]
                    self._inside = True
                elif not final and self._tags.opening.startswith(bare):
                    break
                else:
                    # Empty lines between thoughts and answer belong to neither.
                    self._withheld = bare if self._trim else self._withheld
                    self._fresh = not bare
                    if not bare:
                        rest = rest + self._withheld
                        self._withheld = ""
            else:
                rest = rest + self._withheld
                self._withheld = ""
        return thoughts, rest

    def _until(self, word: str, final: bool) -> tuple[str, bool]:
        """The certain part of the text before `word`, and whether `word` was found."""
        before, separator, after = self._withheld.partition(word)
        if separator:
            self._withheld = after
            return before.rstrip("\n"), True
        keep = 0 if final else _held_back(before, word)
        # Line feeds are held back, too: they are dropped if the closing word follows.
        end = len(before) - keep
        end = end if final else len(before[:end].rstrip("\n"))
        self._withheld = before[end:]
        return before[:end], False


def _held_back(text: str, word: str) -> int:
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
