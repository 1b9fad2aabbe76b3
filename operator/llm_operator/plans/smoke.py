"""Smoke prompts: what a ConfigMap's entries ask, and whether an answer is as expected. Pure."""

import itertools
import json
from typing import Annotated, Any, Self

import jsonschema
import re2
import referencing
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

MAX_PROMPTS = 50
MAX_REFERENCES = 1000
_SHOWN = 120


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Expectation(_Section):
    """Exactly one of them."""

    exact: str | None = None
    regex: str | None = None
    not_regex: str | None = None
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = (self.exact, self.regex, self.not_regex, self.json_schema)
        if sum(value is not None for value in given) != 1:
            raise ValueError(f"write exactly one of {_known(Expectation)}")
        pattern = self.regex if self.regex is not None else self.not_regex
        if pattern is not None:
            try:
                re2.compile(pattern)
            except re2.error as error:
                raise ValueError(f"the pattern is not RE2 syntax: {error}") from error
        return self


class Prompt(_Section):
    """One entry of the ConfigMap."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    expect: Expectation

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("write exactly one of prompt, messages")
        return self

    def body(self, model: str) -> dict[str, Any]:
        """The OpenAI request: greedy, so that the same model answers the same."""
        asked = {"messages": self.messages} if self.messages is not None else {"prompt": self.prompt}
        return {"model": model, **asked, "max_tokens": self.max_tokens, "temperature": 0}


def read(data: dict[str, str]) -> dict[str, Prompt]:
    """The prompts by name. Raises ValueError with a sentence for the ConfigMap's author."""
    if not data or len(data) > MAX_PROMPTS:
        raise ValueError(f"it has {len(data)} entries: write 1 to {MAX_PROMPTS}")
    return {name: _entry(name, text) for name, text in sorted(data.items())}


def _entry(name: str, text: str) -> Prompt:
    try:
        # A few aliases of aliases become a document without an end as soon as it is written as JSON.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError(f"entry {name} has YAML aliases (*name): write what they stand for")
        return Prompt.model_validate(yaml.safe_load(text))
    except RecursionError as error:
        raise ValueError(f"entry {name} is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(f"entry {name} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(str(part) for part in first["loc"]), first["msg"]
        if first["type"] == "extra_forbidden":
            said = f"unknown; there are {_known(Expectation if first['loc'][0] == 'expect' else Prompt)}"
        raise ValueError(f"entry {name}: {where + ': ' if where else ''}{said}") from error


def _known(section: type[_Section]) -> str:
    return ", ".join(map(to_camel, section.model_fields))


def fault(expect: Expectation, answer: str) -> str | None:
    """What is wrong with the answer, or None."""
    if expect.exact is not None:
        return (
            None if answer.strip() == expect.exact.strip() else f"expected {_short(expect.exact)}, got {_short(answer)}"
        )
    if expect.regex is not None:
        found = re2.search(expect.regex, answer)
        return None if found else f"nothing matches {_short(expect.regex)} in {_short(answer)}"
    if expect.not_regex is not None:
        found = re2.search(expect.not_regex, answer)
        return f"{_short(found[0])} matches notRegex in {_short(answer)}" if found else None
    try:
        _validator(expect.json_schema or {}).validate(json.loads(answer))
    except json.JSONDecodeError:
        return f"expected JSON, got {_short(answer)}"
    except jsonschema.ValidationError as error:
        return f"{_short(answer)} is not as jsonSchema says: {error.message[:200]}"
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable, RecursionError, _TooMuch, re2.error) as error:
        return f"jsonSchema can't be used: {type(error).__name__}: {str(error)[:200]}"
    return None


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Any:
    if isinstance(instance, str) and not re2.search(pattern, instance):
        yield jsonschema.ValidationError(f"{instance[:_SHOWN]!r} does not match {pattern!r}")


def _pattern_properties(_validator: Any, _patterns: Any, _instance: Any, _schema: Any) -> Any:
    yield jsonschema.ValidationError("patternProperties is not supported in smoke prompts: name the properties")


# Patterns come from whoever may write ConfigMaps: RE2 takes linear time, Python's own engine may take for ever.
_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties}
)


class _TooMuch(Exception):
    """The schema asks for more than an answer is worth."""


def _validator(schema: dict[str, Any]) -> Any:
    """One that follows so many references and no more: a handful of them can stand for any number of checks."""
    left = itertools.count(MAX_REFERENCES, -1)

    def limited(keyword: Any) -> Any:
        def check(*arguments: Any) -> Any:
            if next(left) <= 0:
                raise _TooMuch(f"more than {MAX_REFERENCES} references are followed")
            yield from keyword(*arguments) or ()

        return check

    followed = {name: limited(_Validator.VALIDATORS[name]) for name in ("$ref", "$dynamicRef")}
    bounded = jsonschema.validators.extend(_Validator, followed)  # type: ignore[no-untyped-call]
    return bounded(schema, registry=referencing.Registry())


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
