"""Chat templates: a Jinja environment like that of Transformers,
and rendering a conversation in it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.utils import Namespace
from pydantic_core import from_json

from llm_runtime.request import Message
from llm_runtime.text.bounds import BoundedEnvironment, metered

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send an earlier answer's reasoning.
Templates read the first; gpt-oss' reads the second."""

TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands after a message that goes on while the template renders, as in Transformers."""

Tools = Sequence[Mapping[str, Any]]


class BadTemplate(Exception):
    """A template that is not valid Jinja, or can't render a conversation. The message says why."""


@lru_cache(maxsize=16)
def compiled(template: str) -> Callable[..., str]:
    """A function that renders the template with the given variables.
    Raises `BadTemplate` for invalid Jinja."""
    try:
        with metered():
            return _environment().from_string(template).render
    except TemplateError as error:
        raise BadTemplate(str(error)) from error
    except RecursionError as error:
        raise BadTemplate("it is nested too deeply") from error


@lru_cache(maxsize=16)
def variables(template: str) -> frozenset[str]:
    """Names of the variables that a template reads; empty for invalid Jinja."""
    with suppress(TemplateError, RecursionError):
        return frozenset(meta.find_undeclared_variables(_environment().parse(template)))
    return frozenset()


def render(
    template: str,
    messages: Sequence[Message],
    tools: Tools = (),
    special_tokens: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = True,
    continued: bool = False,
) -> str:
    """Render a conversation as Transformers' apply_chat_template does. Raises `BadTemplate`.

    `options` are further variables, such as `enable_thinking`; they can't override the standard
    ones. A template that takes too much time or memory is stopped: see `bounds`. `continued`: the
    text ends inside the last message, whose content goes on.
    """
    shown = _with_tag(messages) if continued else messages
    with metered():
        text = _render(
            compiled(template), shown, tools, special_tokens, options, add_generation_prompt
        )
    return _cut_at_tag(text, messages[-1]["content"]) if continued else text


def _with_tag(messages: Sequence[Message]) -> list[Message]:
    *earlier, last = messages
    return [*earlier, {**last, "content": last["content"] + TAG}]


def _cut_at_tag(text: str, last: str) -> str:
    """What a template wrote up to the end of the `last` message."""
    place = text.rfind(TAG.strip())
    if place < 0 or last.strip() not in text:
        raise BadTemplate("it does not show the last message as it is, so that can't be continued")
    # A template that has trimmed the message has trimmed the tag.
    return text[:place] if text.startswith(TAG, place) else text[:place].rstrip()


def _render(
    write: Callable[..., str],
    messages: Sequence[Message],
    tools: Tools,
    special_tokens: Mapping[str, str] | None,
    options: Mapping[str, Any] | None,
    add_generation_prompt: bool,
) -> str:
    given = {
        # Always defined, as in Transformers:
        # some templates test `is not none`, others `is defined`.
        "documents": None,
        **(options or {}),
        "tools": list(tools) or None,
        "add_generation_prompt": add_generation_prompt,
        **(special_tokens or {}),
    }
    conversation = [_with_reasoning(message) for message in messages]
    try:
        text = write({**given, "messages": conversation})
    except Exception as error:  # Code in a template may raise anything.
        for alternative in _alternatives(conversation, error):
            with suppress(Exception):
                return write({**given, "messages": alternative})
        raise BadTemplate(str(error) or type(error).__name__) from error
    if _shows_python(text, conversation):
        with suppress(Exception):
            return write({**given, "messages": _with_arguments(conversation, _to_json)})
    return text


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the assistant's text for training.
    Renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (an attribute of instances, to Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in Transformers, so that variables set inside stay inside.
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """The parts of `dict` that templates may use: the constructor and `fromkeys`."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *keys: Any) -> dict[Any, Any]:
        return dict.fromkeys(*keys)


class _Namespace(Namespace):
    """Jinja's namespace without names that begin with an underscore,
    which would reach Python's internals."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *pairs = args
        attributes = dict(*pairs, **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"a namespace can hold no attribute {name!r}: it begins with an underscore"
        )


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    """Jinja as Transformers sets it up for chat templates (in its chat_template_utils),
    sandboxed and bounded."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.bound_filters()
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(layout),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which is wrong in a prompt.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _with_reasoning(message: Message) -> Message:
    """Set the reasoning under both names that templates read, whichever the client used."""
    thoughts = next(
        (message[name] for name in REASONING_FIELDS if message.get(name) is not None), None
    )
    return (
        message
        if thoughts is None
        else {"thinking": thoughts, **message, "reasoning_content": thoughts}
    )


def _shows_python(text: str, messages: Sequence[Message]) -> bool:
    """Whether a template wrote a call's arguments as a Python dictionary instead of JSON."""
    calls = (
        call["function"]["arguments"]
        for message in messages
        for call in message.get("tool_calls") or ()
    )
    shown = [str(arguments) for arguments in calls if arguments and isinstance(arguments, dict)]
    # It does not count if the conversation itself contains that text.
    texts = [
        str(message.get(part)) for message in messages for part in ("content", *REASONING_FIELDS)
    ]
    return any(call in text and not any(call in part for part in texts) for call in shown)


def _alternatives(messages: Sequence[Message], error: Exception) -> Iterator[list[Message]]:
    """Other forms of the conversation, for a template that may have failed at the arguments of a
    call."""
    arguments = [
        call["function"]["arguments"]
        for message in messages
        for call in message.get("tool_calls") or ()
    ]
    if arguments and isinstance(error, TypeError):
        # As JSON text, as in OpenAI's API: DeepSeek's template needs it,
        # though Transformers passes objects.
        yield _with_arguments(messages, _to_json)
    if any(isinstance(value, str) for value in arguments):
        # Truncated arguments are text, but the templates of GLM,
        # Qwen3-Coder and others iterate over an object.
        yield _with_arguments(messages, as_far_as_read)


def _with_arguments(messages: Sequence[Message], change: Callable[[Any], Any]) -> list[Message]:
    """The conversation with the arguments of every call changed."""

    def changed(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": change(function["arguments"])}}

    return [
        (
            {**message, "tool_calls": [changed(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
        )
        for message in messages
    ]


def as_far_as_read(arguments: Any) -> dict[str, Any]:
    """Truncated arguments as an object.
    Text that does not begin an object becomes its only member."""
    if isinstance(arguments, dict):
        return arguments
    with suppress(ValueError):
        partial = from_json(arguments, allow_partial="trailing-strings")
        if isinstance(partial, dict):
            return partial
    return {"arguments": arguments}
