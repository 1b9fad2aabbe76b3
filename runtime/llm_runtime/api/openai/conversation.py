"""The fields of a conversation for the chat template: messages, tools, and how the prompt ends."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from llm_runtime.api.body import MAX_MESSAGES, Structure, Text, conflict
from llm_runtime.api.openai.messages import ChatMessage
from llm_runtime.api.openai.offer import ToolFields
from llm_runtime.request import Ending
from llm_runtime.tools.offer import Offer, check_messages
from llm_runtime.tools.thoughts import effort_options

SET_HERE = frozenset(
    {"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"}
)
"""Variables of a chat template that clients can't set; nor can they set its special tokens."""


def _not_ours(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        if name in SET_HERE or name.endswith("_token"):
            raise conflict(f"chat_template_kwargs.{name}", "is not for a request to set")
    return options


class ConversationFields(ToolFields):
    """What a chat template makes a prompt of."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    reasoning_effort: Annotated[Text, Field(max_length=64)] | None = None
    """For chat templates that know the word; "none" also asks Qwen's to leave thinking out."""
    chat_template_kwargs: Annotated[Structure, AfterValidator(_not_ours)] = Field(
        default_factory=dict
    )
    """Variables for the chat template, such as `enable_thinking`."""
    add_generation_prompt: bool = True
    """Whether the prompt ends with the beginning of an answer."""
    continue_final_message: bool = False
    """Whether the prompt ends inside the last message, which the answer continues; both as in
    Transformers' `apply_chat_template`."""

    @model_validator(mode="after")
    def _messages_fit_their_roles(self) -> "ConversationFields":
        for number, message in enumerate(self.messages):
            for field, problem in message.problems():
                raise conflict(f"messages[{number}].{field}", problem)
        return self

    @model_validator(mode="after")
    def _tools_fit_each_other(self) -> "ConversationFields":
        names = [offered.function.name for offered in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "two functions have the same name")
        if self.tool_choice and self.tool_choice.mode == "required" and not names:
            raise conflict("tool_choice", "is required, but there are no tools")
        if self.chosen_name and self.chosen_name not in names:
            raise conflict("tool_choice", "names a function that is not among the tools")
        return self

    @model_validator(mode="after")
    def _ends_in_one_way(self) -> "ConversationFields":
        if not self.continue_final_message or not self.messages:
            return self
        if self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set:
            raise conflict(
                "continue_final_message",
                "contradicts add_generation_prompt: true, which begins a new message; send one of"
                " them",
            )
        last = self.messages[-1]
        if last.content is None or last.tool_calls:
            raise conflict(
                f"messages[{len(self.messages) - 1}].content",
                "must be there, without tool_calls, in a message that is to be continued",
            )
        return self

    @property
    def ending(self) -> Ending:
        """What stands after the last message."""
        if self.continue_final_message:
            return "continued"
        return "answer" if self.add_generation_prompt else "nothing"

    @property
    def template_options(self) -> dict[str, Any]:
        """Variables for the chat template."""
        return {**effort_options(self.reasoning_effort), **self.chat_template_kwargs}

    def offer(self, template: str) -> Offer | None:
        """The tools that the model may call.
        Raises `errors.InvalidRequest` if its template can't show them."""
        check_messages(template, self.messages)
        return self.offer_in(template)
