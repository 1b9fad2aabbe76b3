"""`tools` and `tool_choice`: what the model may or must call,
and how to parse calls in its answer."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llm_runtime import errors
from llm_runtime.api.body import Baggage, Body, Text
from llm_runtime.api.openai.messages import FunctionName, Structure
from llm_runtime.request import STRICT_AS, Constraint
from llm_runtime.tools.calls import Call, Tool
from llm_runtime.tools.form import Form
from llm_runtime.tools.forms import AnswerForm, form_of, knows_tools
from llm_runtime.tools.grammar import MOST_CALLS, NO_TOKENS, Tokens, allowed, either, forced
from llm_runtime.tools.reader import AnswerReader

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
MAX_TOOLS = 128


class Function(Baggage):
    """A function and the JSON schema of its arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: Structure | None = None
    strict: bool = False


class OfferedTool(Baggage):
    """An entry of `tools`."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool for chat templates, with every field that was sent."""
        function = self.function
        described = {"name": function.name, "description": function.description or ""}
        return {
            "type": "function",
            "function": {**described, "parameters": function.parameters or NO_ARGUMENTS},
        }

    def tool(self) -> Tool:
        parameters = self.function.parameters
        schema = NO_ARGUMENTS if parameters is None else {"type": "object", **parameters}
        if self.function.strict:
            schema = {**schema, STRICT_AS: self.function.name}
        return Tool(self.function.name, schema, self.function.strict)


class NamedFunction(Body):
    """The name in a `tool_choice`."""

    name: FunctionName


class NamedChoice(Body):
    """A `tool_choice` that names a function."""

    type: Literal["function"]
    function: NamedFunction


def _as_object(value: Any) -> Any:
    return (
        {"mode": value}
        if isinstance(value, str)
        else {"named": value}
        if isinstance(value, dict)
        else value
    )


class ToolChoice(Body):
    """`tool_choice`: a mode, or the function to call."""

    mode: Literal["none", "auto", "required"] = "auto"
    named: NamedChoice | None = None


Choice = Annotated[
    ToolChoice,
    BeforeValidator(
        _as_object, json_schema_input_type=Literal["none", "auto", "required"] | NamedChoice
    ),
]


class ToolFields(Body):
    """The fields that speak of tools."""

    tools: Annotated[list[OfferedTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True

    @property
    def offered(self) -> list[OfferedTool]:
        """The tools that the model sees."""
        return [] if self.tool_choice and self.tool_choice.mode == "none" else self.tools

    @property
    def chosen_name(self) -> str | None:
        """The function that must be called, if the request names one."""
        named = self.tool_choice.named if self.tool_choice else None
        return named.function.name if named else None


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

    def rendered(self, call: Call) -> dict[str, Any]:
        """A call as OpenAI's clients expect it."""
        function = {"name": call.name, "arguments": call.arguments}
        return {"id": self.form.new_id(call.name), "type": "function", "function": function}


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

    def rendered(self, call: Call) -> dict[str, Any]:
        """A call as OpenAI's clients expect it."""
        assert self.offer is not None
        return self.offer.rendered(call)


def offer_of(fields: ToolFields, template: str) -> Offer | None:
    """None if no tool is offered. Raises `errors.InvalidRequest` if the model can't call any."""
    if not fields.offered:
        return None
    form = _form(template)
    tools = tuple(offered.tool() for offered in fields.offered)
    name = fields.chosen_name
    must_call = name is not None or bool(
        fields.tool_choice and fields.tool_choice.mode == "required"
    )
    most = MOST_CALLS if fields.parallel_tool_calls and name is None else 1
    return Offer(form, tuple(tool for tool in tools if name in (None, tool.name)), must_call, most)


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
