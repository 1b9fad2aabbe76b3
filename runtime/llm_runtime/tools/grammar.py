"""Answers that are calls, as constraints for the engine."""

import json
import re
from collections.abc import Sequence
from typing import Any

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import STRICT_AS, Constraint
from llm_runtime.tools.calls import Tool
from llm_runtime.tools.forms import Form

MOST_CALLS = 16
"""In one forced answer."""
ANY_TEXT = r"(.|\n)*"


def forced(form: Form, tools: Sequence[Tool], most: int = MOST_CALLS) -> Constraint:
    """An answer that is nothing but calls, one at least, with arguments that match their schemas."""
    rules = ["start: calls", _calls(form, most), _call(form.marker, len(tools))]
    return _constraint(form, tools, rules, [tool.parameters for tool in tools])


def allowed(form: Form, tools: Sequence[Tool], most: int = MOST_CALLS) -> Constraint:
    """A free answer, the calls of which match the schemas of those tools that are strict."""
    schemas = [tool.parameters if tool.strict else {"type": "object"} for tool in tools]
    if form.marker:
        # llguidance ends a lazy text at the first marker, so that none can be written outside of a call.
        head = f"head[lazy]: TEXT {_quoted(form.marker)}"
        rules = ["start: tagged* TEXT", "tagged: head call", head, f"TEXT: /{ANY_TEXT}/", _call("", len(tools))]
    else:
        text = f"TEXT: /([^\\s{re.escape(form.first)}]{ANY_TEXT})?/"
        rules = ["start: calls | TEXT", text, _calls(form, most), _call("", len(tools))]
    return _constraint(form, tools, rules, schemas)


def either(form: Form, tools: Sequence[Tool], answer: Constraint, most: int = MOST_CALLS) -> Constraint:
    """Calls, or an answer that matches a constraint, which is of JSON. Raises `errors.InvalidRequest`."""
    if form.first == "{":  # llguidance's lexer does not go back: it must know by the first character which it is.
        message = "This model writes calls as bare JSON; it can't be free to call and bound to a format."
        raise InvalidRequest(message, param="response_format", code="unsupported_parameter")
    schema = json.loads(answer.text) if answer.kind == "json_schema" else {"type": "object"}
    if answer.strict:
        schema = {**schema, STRICT_AS: "response_format"}
    rules = [f"start: calls | schema_{len(tools)}", _calls(form, most), _call(form.marker, len(tools))]
    return _constraint(form, tools, rules, [*(tool.parameters for tool in tools), schema])


def _calls(form: Form, most: int) -> str:
    more = f"({_quoted(form.between)} call){{0,{most - 1}}}" if most > 1 else ""
    return f"calls: {_quoted(form.opening)} call {more} {_quoted(form.closing)}"


def _call(marker: str, tools: int) -> str:
    return f"call: {_quoted(marker)} ({' | '.join(f'call_{number}' for number in range(tools))})"


def _constraint(form: Form, tools: Sequence[Tool], rules: list[str], schemas: list[dict[str, Any]]) -> Constraint:
    for number, tool in enumerate(tools):
        rules.append(f"call_{number}: {_quoted(form.before(tool.name))} schema_{number} {_quoted(form.after)}")
    return Constraint("grammar", json.dumps({"rules": rules, "schemas": schemas}, ensure_ascii=False))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
