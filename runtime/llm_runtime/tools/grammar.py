"""Constraints for the engine that make an answer contain calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import STRICT_AS, Constraint
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.form import Form
from llm_runtime.tools.lark import Lark

MOST_CALLS = 16
"""Most calls in one forced answer."""

Tokens = Mapping[str, int]
"""The tokenizer's control tokens by their text.
Markup that is a control token must be written as one."""
NO_TOKENS: Tokens = MappingProxyType({})


def forced(
    form: Form, tools: Sequence[Tool], most: int = MOST_CALLS, tokens: Tokens = NO_TOKENS
) -> Constraint:
    """An answer of at least one call and nothing else. Arguments match their schemas."""
    lark = Lark(tokens)
    lark.rule("start", form.calls(lark, tools, most))
    return lark.constraint()


def allowed(
    form: Form, tools: Sequence[Tool], most: int = MOST_CALLS, tokens: Tokens = NO_TOKENS
) -> Constraint:
    """A free answer in which calls of strict tools match their schemas."""
    lark = Lark(tokens)
    free = [tool if tool.strict else replace(tool, parameters={"type": "object"}) for tool in tools]
    lark.rule("start", form.free(lark, free, most))
    return lark.constraint()


def either(
    form: Form,
    tools: Sequence[Tool],
    answer: Constraint,
    most: int = MOST_CALLS,
    tokens: Tokens = NO_TOKENS,
) -> Constraint:
    """Calls, or an answer that matches the JSON constraint `answer`.
    Raises `errors.InvalidRequest`."""
    if form.first.startswith(
        "{"
    ):  # llguidance's lexer can't backtrack, so the first character must decide.
        message = (
            "This model writes calls as bare JSON, so optional calls can't be combined with a"
            " response format."
        )
        raise InvalidRequest(message, param="response_format", code="unsupported_parameter")
    lark = Lark(tokens)
    schema = json.loads(answer.text) if answer.kind == "json_schema" else {"type": "object"}
    if answer.strict:
        schema = {**schema, STRICT_AS: "response_format"}
    lark.rule("start", f"{form.calls(lark, tools, most)} | {lark.schema(schema)}")
    return lark.constraint()
