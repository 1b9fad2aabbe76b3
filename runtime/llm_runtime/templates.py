"""Chat templates: the Jinja world that Transformers gives them, and a conversation rendered in it."""

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

from llm_runtime.bounds import BoundedEnvironment, metered
from llm_runtime.request import Message

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send an earlier answer's thoughts; templates read the first or, gpt-oss', the second."""

Tools = Sequence[Mapping[str, Any]]


class BadTemplate(Exception):
    """A template that is no Jinja, or that can't render what it was given; the text says why."""


@lru_cache(maxsize=16)
def compiled(template: str) -> Callable[..., str]:
    """Renders with the names that a template is given. Raises `BadTemplate` for a text that is no Jinja."""
    try:
        return _environment().from_string(template).render
    except TemplateError as error:
        raise BadTemplate(str(error)) from error
    except RecursionError as error:
        raise BadTemplate("it is nested too deeply") from error


@lru_cache(maxsize=16)
def variables(template: str) -> frozenset[str]:
    """Names that a template takes from outside; none of one that is no Jinja."""
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
) -> str:
    """A conversation as `template` writes it, as Transformers' apply_chat_template would. Raises `BadTemplate`.

    `options` are further variables, such as `enable_thinking`; none of them takes the place of another. One that takes
    more time or memory than a prompt can be worth is ended: see `bounds`.
    """
    with metered():
        return _render(compiled(template), messages, tools, special_tokens, options, add_generation_prompt)


def _render(
    write: Callable[..., str],
    messages: Sequence[Message],
    tools: Tools,
    special_tokens: Mapping[str, str] | None,
    options: Mapping[str, Any] | None,
    add_generation_prompt: bool,
) -> str:
    given = {
        # Always there, as Transformers has it: templates ask `is not none`, and also `is defined`.
        "documents": None,
        **(options or {}),
        "tools": list(tools) or None,
        "add_generation_prompt": add_generation_prompt,
        **(special_tokens or {}),
    }
    conversation = [_with_reasoning(message) for message in messages]
    try:
        text = write({**given, "messages": conversation})
    except Exception as error:  # Whatever code in a template raises is the template's, or of what it was given.
        for told_otherwise in _otherwise(conversation, error):
            with suppress(Exception):
                return write({**given, "messages": told_otherwise})
        raise BadTemplate(str(error) or type(error).__name__) from error
    if _shows_python(text, conversation):
        with suppress(Exception):
            return write({**given, "messages": _with_arguments(conversation, _to_json)})
    return text


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks, for training, what an assistant said; rendered it is its body."""

    tags = {"generation"}  # noqa: RUF012 (an attribute of instances, to Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in Transformers: what is set inside stays inside.
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict` as templates may use it: made, and made from keys."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *keys: Any) -> dict[Any, Any]:
        return dict.fromkeys(*keys)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore: they would reach into Python."""

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
        raise SecurityError(f"a namespace can hold no attribute {name!r}: it begins with an underscore")


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    """What Transformers gives to chat templates (its chat_template_utils), sandboxed as there, and bounded."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
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
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _with_reasoning(message: Message) -> Message:
    """Thoughts under both names that templates read, whichever the client used."""
    thoughts = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _shows_python(text: str, messages: Sequence[Message]) -> bool:
    """Whether a template has written a call's arguments as Python writes a dictionary."""
    calls = (call["function"]["arguments"] for message in messages for call in message.get("tool_calls") or ())
    shown = [str(arguments) for arguments in calls if arguments and isinstance(arguments, dict)]
    # Somebody may have said it, too.
    said = [str(message.get(part)) for message in messages for part in ("content", *REASONING_FIELDS)]
    return any(call in text and not any(call in part for part in said) for call in shown)


def _otherwise(messages: Sequence[Message], error: Exception) -> Iterator[list[Message]]:
    """Conversations that a template may take which has failed at the arguments of a call."""
    arguments = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls") or ()]
    if arguments and isinstance(error, TypeError):
        # As the text that OpenAI's API has: DeepSeek's wants it, though Transformers hands over objects.
        yield _with_arguments(messages, _to_json)
    if any(isinstance(each, str) for each in arguments):
        # Those of a call that was cut are text: GLM's, Qwen3-Coder's and others go through an object's members.
        yield _with_arguments(messages, _as_far_as_read)


def _with_arguments(messages: Sequence[Message], change: Callable[[Any], Any]) -> list[Message]:
    """The conversation with the arguments of every call changed."""

    def changed(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": change(function["arguments"])}}

    return [
        {**message, "tool_calls": [changed(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _as_far_as_read(arguments: Any) -> dict[str, Any]:
    """An object of what the model wrote before its call was cut. What begins none is its one member."""
    if isinstance(arguments, dict):
        return arguments
    with suppress(ValueError):
        found = from_json(arguments, allow_partial="trailing-strings")
        if isinstance(found, dict):
            return found
    return {"arguments": arguments}
