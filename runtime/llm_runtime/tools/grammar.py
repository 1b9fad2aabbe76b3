"""Answers that are calls, as constraints for the engine."""

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
"""In one forced answer."""

Tokens = Mapping[str, int]
"""The tokenizer's control tokens by their text: markup that is one is written as one."""
NO_TOKENS: Tokens = MappingProxyType({})


def forced(form: Form, tools: Sequence[Tool], most: int = MOST_CALLS, tokens: Tokens = NO_TOKENS) -> Constraint:
    """An answer that is nothing but calls, one at least, with arguments that match their schemas."""
    lark = Lark(tokens)
    lark.rule("start", form.calls(lark, tools, most))
    return lark.constraint()


def allowed(form: Form, tools: Sequence[Tool], most: int = MOST_CALLS, tokens: Tokens = NO_TOKENS) -> Constraint:
    """A free answer, the calls of which match the schemas of those tools that are strict."""
    lark = Lark(tokens)
    free = [tool if tool.strict else replace(tool, parameters={"type": "object"}) for tool in tools]
    lark.rule("start", form.free(lark, free, most))
    return lark.constraint()


def either(
    form: Form, tools: Sequence[Tool], answer: Constraint, most: int = MOST_CALLS, tokens: Tokens = NO_TOKENS
) -> Constraint:
    """Calls, or an answer that matches a constraint, which is of JSON. Raises `errors.InvalidRequest`."""
    if form.first.startswith("{"):  # llguidance's lexer does not go back: the first character must say which it is.
        message = "This model writes calls as bare JSON; it can't be free to call and bound to a format."
        raise InvalidRequest(message, param="response_format", code="unsupported_parameter")
    lark = Lark(tokens)
    schema = json.loads(answer.text) if answer.kind == "json_schema" else {"type": "object"}
    if answer.strict:
        schema = {**schema, STRICT_AS: "response_format"}
    lark.rule("start", f"{form.calls(lark, tools, most)} | {lark.schema(schema)}")
    return lark.constraint()
