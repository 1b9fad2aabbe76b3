"""`tools` and `tool_choice`: what the model may or must call."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llm_runtime.api.body import Baggage, Body, Structure, Text, conflict, one_of
from llm_runtime.api.openai.messages import FunctionName
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.offer import MAX_TOOLS, Offer, for_template, offer_of, tool_of

NONE_RUN = (
    "this server runs no tools of its own (web_search, file_search, code_interpreter and others):"
    " send a tool of type function, and run it yourself"
)


class FunctionTool(Baggage):
    """A function and the JSON schema of its arguments."""

    type: Annotated[Literal["function"], one_of(["function"], NONE_RUN)]
    name: FunctionName
    description: Text | None = None
    parameters: Structure | None = None
    strict: bool = False

    def for_template(self) -> dict[str, Any]:
        """The tool for chat templates."""
        return for_template(self.name, self.description, self.parameters)

    def tool(self) -> Tool:
        return tool_of(self.name, self.parameters, strict=self.strict)


class AllowedTool(Body):
    """An entry of `tool_choice.tools`."""

    type: Annotated[Literal["function"], one_of(["function"], NONE_RUN)]
    name: FunctionName


class ToolChoice(Body):
    """`tool_choice`: a mode, the function to call, or the tools that may be called."""

    type: (
        Annotated[
            Literal["function", "allowed_tools"], one_of(["function", "allowed_tools"], NONE_RUN)
        ]
        | None
    ) = None
    """None: the mode alone."""
    mode: Literal["none", "auto", "required"] = "auto"
    name: FunctionName | None = None
    tools: Annotated[list[AllowedTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fields_go_with_its_type(self) -> "ToolChoice":
        if (self.type == "function") != (self.name is not None):
            raise conflict("tool_choice.name", "must be there if type is function, and only then")
        if (self.type == "allowed_tools") != bool(self.tools):
            raise conflict(
                "tool_choice.tools", "must be there if type is allowed_tools, and only then"
            )
        if self.type and self.mode == "none":
            raise conflict("tool_choice.mode", "is auto or required where functions are named")
        return self

    @property
    def names(self) -> list[str]:
        """The functions that it names."""
        return [self.name] if self.name else [tool.name for tool in self.tools]

    def shown(self) -> str | dict[str, Any]:
        """As clients write it."""
        if self.type is None:
            return self.mode
        if self.type == "function":
            return {"type": self.type, "name": self.name}
        tools = [tool.model_dump() for tool in self.tools]
        return {"type": self.type, "mode": self.mode, "tools": tools}


class NamedChoice(Body):
    """A `tool_choice` that names a function."""

    type: Literal["function"]
    name: FunctionName


class AllowedChoice(Body):
    """A `tool_choice` that names the tools that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


def _as_object(value: Any) -> Any:
    if isinstance(value, str):
        return {"mode": value}
    return {"type": "", **value} if isinstance(value, dict) else value


Choice = Annotated[
    ToolChoice,
    BeforeValidator(
        _as_object,
        json_schema_input_type=Literal["none", "auto", "required"] | NamedChoice | AllowedChoice,
    ),
]


class ToolFields(Body):
    """The fields that speak of tools."""

    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Choice = ToolChoice()
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _tools_fit_each_other(self) -> "ToolFields":
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "two functions have the same name")
        if self.tool_choice.mode == "required" and not names:
            raise conflict("tool_choice", "is required, but there are no tools")
        if not set(self.tool_choice.names) <= set(names):
            raise conflict("tool_choice", "names a function that is not among the tools")
        return self

    @property
    def offered(self) -> list[FunctionTool]:
        """The tools that the model sees."""
        choice = self.tool_choice
        if choice.mode == "none":
            return []
        if choice.type == "allowed_tools":
            return [tool for tool in self.tools if tool.name in choice.names]
        return self.tools

    def offer_in(self, template: str) -> Offer | None:
        """The tools that a model with this chat template may call; None if there are none.
        Raises `errors.InvalidRequest` if it can't call any."""
        return offer_of(
            tuple(tool.tool() for tool in self.offered),
            template,
            must_call=self.tool_choice.mode == "required",
            chosen=self.tool_choice.name,
            parallel=self.parallel_tool_calls,
        )
