"""`tools` and `tool_choice`: what the model may or must call."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from llm_runtime.api.body import Baggage, Body, Structure, Text, conflict, one_of
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.offer import MAX_TOOLS, Offer, for_template, offer_of, tool_of

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


NONE_RUN = (
    "this server runs no tools of its own: send one of type custom, with its input_schema, and run"
    " it yourself"
)


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise ValueError("must be the schema of an object: type object")
    return schema


class ClientTool(Baggage):
    """A tool that the client runs, and the JSON schema of its input."""

    type: Annotated[Literal["custom"], one_of(["custom"], NONE_RUN)] = "custom"
    name: ToolName
    description: Text | None = None
    input_schema: Annotated[Structure, AfterValidator(_of_an_object)]
    strict: bool = False
    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "input_examples": ([],),
    }

    def for_template(self) -> dict[str, Any]:
        """The tool for chat templates."""
        return for_template(self.name, self.description, self.input_schema)

    def tool(self) -> Tool:
        return tool_of(self.name, self.input_schema, strict=self.strict)


class ToolChoice(Body):
    """`tool_choice`: whether the model may call, must call, or which tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _name_goes_with_its_type(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise conflict("tool_choice.name", "must be there if type is tool, and only then")
        return self


class ToolFields(Body):
    """The fields that speak of tools."""

    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice = ToolChoice(type="auto")

    @model_validator(mode="after")
    def _tools_fit_each_other(self) -> "ToolFields":
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "two tools have the same name")
        if self.tool_choice.type in ("any", "tool") and not names:
            raise conflict("tool_choice", "wants a call, but there are no tools")
        if self.tool_choice.name and self.tool_choice.name not in names:
            raise conflict("tool_choice", "names a tool that is not among the tools")
        return self

    @property
    def offered(self) -> list[ClientTool]:
        """The tools that the model sees."""
        return [] if self.tool_choice.type == "none" else self.tools

    def offer_in(self, template: str) -> Offer | None:
        """The tools that a model with this chat template may call; None if there are none.
        Raises `errors.InvalidRequest` if it can't call any."""
        return offer_of(
            tuple(tool.tool() for tool in self.offered),
            template,
            must_call=self.tool_choice.type == "any",
            chosen=self.tool_choice.name,
            parallel=not self.tool_choice.disable_parallel_tool_use,
        )
