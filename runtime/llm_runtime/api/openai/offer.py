"""`tools` and `tool_choice`: what the model may or must call."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llm_runtime.api.body import Baggage, Body, Structure, Text
from llm_runtime.api.openai.messages import FunctionName
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.offer import MAX_TOOLS, Offer, for_template, offer_of, tool_of


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
        """The tool for chat templates."""
        function = self.function
        return for_template(function.name, function.description, function.parameters)

    def tool(self) -> Tool:
        function = self.function
        return tool_of(function.name, function.parameters, strict=function.strict)


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

    def offer_in(self, template: str) -> Offer | None:
        """The tools that a model with this chat template may call; None if there are none.
        Raises `errors.InvalidRequest` if it can't call any."""
        return offer_of(
            tuple(offered.tool() for offered in self.offered),
            template,
            must_call=bool(self.tool_choice and self.tool_choice.mode == "required"),
            chosen=self.chosen_name,
            parallel=self.parallel_tool_calls,
        )
