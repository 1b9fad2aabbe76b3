"""What a request offers its model to call, and how to parse the answers to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llm_runtime import errors
from llm_runtime.request import STRICT_AS, Constraint, TextCodec
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.form import Form
from llm_runtime.tools.forms import AnswerForm, begins_inside, form_of, knows_tools, reading_of
from llm_runtime.tools.grammar import MOST_CALLS, NO_TOKENS, Tokens, allowed, either, forced
from llm_runtime.tools.reader import AnswerReader

MAX_TOOLS = 128
"""Most tools of a request."""
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def tool_of(name: str, parameters: dict[str, Any] | None, *, strict: bool) -> Tool:
    """A tool whose arguments match the JSON schema `parameters`; None: it takes none."""
    schema = NO_ARGUMENTS if parameters is None else {"type": "object", **parameters}
    if strict:
        schema = {**schema, STRICT_AS: name}
    return Tool(name, schema, strict)


def for_template(
    name: str, description: str | None, parameters: dict[str, Any] | None
) -> dict[str, Any]:
    """A tool for chat templates, which know the form of OpenAI's functions."""
    described = {"name": name, "description": description or ""}
    return {"type": "function", "function": {**described, "parameters": parameters or NO_ARGUMENTS}}


@dataclass(frozen=True, slots=True)
class Offer:
    """The offered tools, and the form in which this model writes calls."""

    form: Form
    tools: tuple[Tool, ...]
    must_call: bool
    most: int

    def constraint(
        self, answer: Constraint | None, tokens: Tokens = NO_TOKENS
    ) -> Constraint | None:
        """The constraint that makes the model call, or call well. `answer`: what it must match
        where it does not call.

        `tokens` are the tokenizer's special ones, which markup may consist of.
        """
        if self.must_call:
            return forced(self.form, self.tools, self.most, tokens)
        if answer:
            return either(self.form, self.tools, answer, self.most, tokens)
        strict = any(tool.strict for tool in self.tools)
        return allowed(self.form, self.tools, self.most, tokens) if strict else None


def offer_of(
    tools: tuple[Tool, ...],
    template: str,
    *,
    must_call: bool = False,
    chosen: str | None = None,
    parallel: bool = True,
) -> Offer | None:
    """The offer of `tools`; None if there are none.

    `must_call`: the model calls in any case. `chosen` is the one tool that it must call.
    Raises `errors.InvalidRequest` if a model with this chat template can't call any.
    """
    if not tools:
        return None
    return Offer(
        _form(template),
        tuple(tool for tool in tools if chosen in (None, tool.name)),
        must_call or chosen is not None,
        MOST_CALLS if parallel and chosen is None else 1,
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """How to parse a request's answers."""

    reading: AnswerForm
    offer: Offer | None = None
    inside: bool = False
    """Whether they begin inside a thought."""

    def reader(self) -> AnswerReader:
        """A reader for one answer."""
        if self.offer is None:
            return self.reading.reader(inside=self.inside)
        tools = {tool.name: tool.parameters for tool in self.offer.tools}
        return self.reading.reader(
            tools, self.offer.most, forced=self.offer.must_call, inside=self.inside
        )

    def new_id(self, name: str) -> str:
        """An id for a call of the tool `name`, as the model's chat template may want it."""
        assert self.offer is not None
        return self.offer.form.new_id(name)


def answers_to(
    codec: TextCodec, offer: Offer | None, options: Mapping[str, Any], *, bound: bool
) -> Answers:
    """How to parse the answers to a conversation with this offer.

    `options` are further variables of the chat template. `bound`: the answer must match something
    that the client wrote.
    """
    template = codec.tool_template if offer else codec.chat_template
    # A constrained answer must match from its first token on, so it has no thoughts.
    bound = bound or (offer is not None and offer.must_call)
    inside = not bound and begins_inside(template, options)
    return Answers(reading_of(template), offer, inside)


class SaidMessage(Protocol):
    """A message of a conversation."""

    @property
    def speaks_of_tools(self) -> bool:
        """Whether it holds calls or results."""


def check_messages(template: str, messages: Iterable[SaidMessage], field: str = "messages") -> None:
    """Raise `errors.InvalidRequest` if a chat template can't show the tools that the messages in
    `field` speak of."""
    for number, message in enumerate(messages):
        if message.speaks_of_tools:
            check_template(template, f"{field}[{number}]")


def check_template(template: str, field: str) -> None:
    """Raise `errors.InvalidRequest` if a chat template can't show the tools in `field`."""
    if not knows_tools(template):
        message = "The model's chat template knows no tools; send the conversation without any."
        raise errors.InvalidRequest(message, param=field, code="unsupported_parameter")


def _form(template: str) -> Form:
    check_template(template, "tools")
    if form := form_of(template):
        return form
    message = (
        "The model's chat template has calls written in a form that this server can't read; send no"
        " tools."
    )
    raise errors.InvalidRequest(message, param="tools", code="unsupported_parameter")
