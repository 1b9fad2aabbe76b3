"""All known forms, and detection of the one that a chat template uses:
each form tries to parse a rendered call."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from llm_runtime.request import Message
from llm_runtime.text.templates import BadTemplate, render, variables
from llm_runtime.tools.calls import Call, Offered
from llm_runtime.tools.form import Form
from llm_runtime.tools.harmony import CHANNEL, MESSAGE, Channels, HarmonyForm
from llm_runtime.tools.json_forms import Hermes, JsonForm, Llama, Mistral
from llm_runtime.tools.named_forms import deepseek, kimi
from llm_runtime.tools.pythonic import Pythonic
from llm_runtime.tools.reader import AnswerReader, Reader
from llm_runtime.tools.thoughts import TAGS, Tags, Thoughts
from llm_runtime.tools.xml_forms import glm, minimax, qwen_coder, seed

FORMS: tuple[Form, ...] = (
    Hermes(),
    qwen_coder(),
    glm(lines=True),
    glm(lines=False),
    HarmonyForm(),
    deepseek(fenced=True),
    deepseek(fenced=False),
    kimi(),
    minimax(),
    seed(),
    JsonForm("phi", ("<|tool_call|>",), "<|/tool_call|>", listed=True),
    JsonForm("granite", ("<|tool_call|>", "<tool_call>"), listed=True),
    JsonForm("nemotron", ("<TOOLCALL>",), "</TOOLCALL>", listed=True),
    JsonForm("jamba", ("<tool_calls>",), "</tool_calls>", listed=True),
    JsonForm(
        "internlm", ("<|action_start|><|plugin|>",), "<|action_end|>", keys=("name", "parameters"), space="\n",
    ),
    JsonForm(
        "command-a", ("<|START_ACTION|>",), "<|END_ACTION|>", listed=True, keys=("tool_name", "parameters"), space="\n"
    ),
    JsonForm(
        "command-r", ("Action: ```json", "Action:```json"), "```", listed=True, keys=("tool_name", "parameters"),
        space="\n",
    ),
    Pythonic("<|tool_call_start|>", "<|tool_call_end|>"),
    Pythonic("<function_calls>", "</function_calls>"),
    Pythonic("<|python_start|>", "<|python_end|>"),
    Mistral(named=True),
    Mistral(),
    Llama(),
    Pythonic(),
)  # fmt: skip

_BY_WORDS = (
    (re.compile(r"<tool_call>.*\\?\"name\\?\"\s*:", re.DOTALL), "hermes"),
    (re.compile(r"\[TOOL_CALLS\].*\[ARGS\]", re.DOTALL), "mistral-named"),
    (re.compile(r"\[TOOL_CALLS\]"), "mistral"),
    (re.compile(r"<\|python_tag\|>|\"parameters\\?\": dictionary of argument name"), "llama"),
)
"""Forms by words in a template.
For templates that describe the form to the model, but don't render calls."""

_NAME = "look_up_weather"
_ARGUMENTS = {"city": "Kiel é", "days": 3}
_SCHEMA: Offered = {
    _NAME: {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Weather",
        "parameters": {"type": "object", **_SCHEMA[_NAME]},
    },
}
_ASKED: Message = {"role": "user", "content": "What is the weather?"}
_CALL = {"type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
_WORDS_IN_BRACKETS = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")
MOST_LETTERS = 20
"""Most letters, outside of brackets, of the words that end a message."""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
"""Special tokens for test renderings, which need some."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How to parse the answers of a model with one chat template."""

    form: Form | None = None
    """The form of its calls; None if it writes none, or none that can be parsed."""
    tags: Tags | None = None
    """The tags around its thoughts."""
    opens: bool = False
    """Whether a prompt ends inside a thought by default."""
    channels: bool = False
    """Whether answers are messages on channels (gpt-oss)."""

    @property
    def words(self) -> tuple[str, ...]:
        """Words that must stay visible for parsing, though they may be special tokens."""
        thoughts = (self.tags.opening, self.tags.closing) if self.tags else ()
        return (
            *thoughts,
            *(self.form.tags if self.form else ()),
            *(HarmonyForm().tags if self.channels else ()),
        )

    def shown(self, control_ids: Mapping[str, int]) -> tuple[int, ...]:
        """The ids of these words, if they are tokens."""
        return tuple(sorted({control_ids[word] for word in self.words if word in control_ids}))

    def inside(self, prompt: str) -> bool:
        """Whether a prompt ends inside a thought."""
        return self.tags is not None and prompt.rfind(self.tags.opening) > prompt.rfind(
            self.tags.closing
        )

    def reader(
        self,
        tools: Offered | None = None,
        most: int | None = None,
        *,
        forced: bool = False,
        inside: bool | None = None,
    ) -> AnswerReader:
        """A reader for one answer. `inside`: whether it begins inside a thought;
        None means the template's default."""
        inside = self.opens if inside is None else inside
        splitter = Channels(tools or ()) if self.channels else None
        if self.tags and not splitter:
            splitter = Thoughts(self.tags, inside=inside)  # type: ignore[assignment]
        calls = Reader(self.form, tools, most, forced=forced) if self.form and tools else None
        return AnswerReader(splitter, calls)


def knows_tools(template: str) -> bool:
    """Whether a chat template uses tools."""
    return "tools" in variables(template)


def form_of(template: str) -> Form | None:
    """The form of calls that a chat template uses; None if it is unknown."""
    return reading_of(template).form


@lru_cache(maxsize=16)
def reading_of(template: str) -> AnswerForm:
    """How to parse answers to prompts of this template."""
    if not template:
        return AnswerForm()
    channels = CHANNEL in template and MESSAGE in template
    tags = None if channels else next((tags for tags in TAGS if tags.closing in template), None)
    reading = AnswerForm(None, tags, channels=channels)
    reading = replace(reading, opens=_opens(template, reading, {}))
    return replace(reading, form=_form(template, reading)) if knows_tools(template) else reading


def begins_inside(template: str, options: Mapping[str, Any]) -> bool:
    """Whether a prompt of this template ends inside a thought.
    `options` are further variables of the template."""
    reading = reading_of(template)
    if reading.tags is None or not options:
        return reading.opens
    return _opens(template, reading, options)


def _opens(template: str, reading: AnswerForm, options: Mapping[str, Any]) -> bool:
    try:
        return reading.inside(render(template, [_ASKED], (), SPECIAL, options))
    except BadTemplate:
        return False


def _form(template: str, reading: AnswerForm) -> Form | None:
    shown = rendered_call(template)
    if shown is None:
        name = next((name for pattern, name in _BY_WORDS if pattern.search(template)), "")
        return next((form for form in FORMS if form.name == name), None)
    return next((form for form in FORMS if _reads(form, shown, reading)), None)


def rendered_call(template: str) -> str | None:
    """A call of the assistant, as the template renders it; None if it renders no calls."""
    before = _rendered(template, [_ASKED], prompt=True, tools=True)
    for name in (
        "abcDEF123",
        f"functions.{_NAME}:0",
    ):  # Kimi's template writes a call's id in place of its name.
        called: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": name, **_CALL}],
        }
        whole = _rendered(template, [_ASKED, called], tools=True)
        if before is not None and whole is not None and _NAME in whole[_shared(before, whole) :]:
            return whole[_shared(before, whole) :]
    return None


def _reads(form: Form, shown: str, reading: AnswerForm) -> bool:
    """Whether `form` parses the rendered call completely, except for words that end a message."""
    tags = reading.tags
    inside = reading.opens and tags is not None and tags.closing in shown.partition(tags.opening)[0]
    reader = AnswerForm(form, tags, inside, reading.channels).reader(_SCHEMA)
    part = reader.take(shown, final=True)
    if not form.writes(shown) or len(part.calls) != 1 or not _is_same(part.calls[0]):
        return False
    left = part.text.strip()
    bare = re.sub(r"\W", "", _WORDS_IN_BRACKETS.sub("", left))
    return not left or (shown.rstrip().endswith(left) and len(bare) <= MOST_LETTERS)


def _is_same(call: Call) -> bool:
    return call.name == _NAME and bool(json.loads(call.arguments) == _ARGUMENTS)


def _rendered(
    template: str, messages: list[Message], *, prompt: bool = False, tools: bool = False
) -> str | None:
    offered: list[dict[str, Any]] = [_TOOL] if tools else []
    try:
        return render(template, messages, offered, SPECIAL, add_generation_prompt=prompt)
    except BadTemplate:
        return None


def _shared(one: str, other: str) -> int:
    """Length of the common prefix. A word in brackets counts only as a whole."""
    pairs = enumerate(zip(one, other, strict=False))
    end = next((at for at, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))
    for opening, closing in ("<>", "[]"):
        begin = one.rfind(opening, 0, end)
        end = begin if begin > one.rfind(closing, 0, end) else end
    return end
