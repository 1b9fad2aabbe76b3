"""Smoke prompts: what a ConfigMap's entries ask, and whether an answer is as expected. Pure.

Their authors are tenants: all of it is bounded here,
and the operator has it done in a process of its own (`confined`).
"""

import itertools
import json
from typing import Annotated, Any, Self

import jsonschema
import re2
import referencing
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it: many times faster."""
MAX_PROMPTS = 50
MAX_CHARACTERS = 64 << 10
"""Largest size of one entry."""
MAX_DEPTH = 32
MAX_REFERENCES = 1000
MAX_STEPS = 5000
"""Keywords of a schema that are looked at for one answer:
nested ones may ask for each other twice at each level."""
MAX_ANSWER_CHARACTERS = 64 << 10
_SHOWN = 120
SCHEMA_UNUSABLE = "jsonSchema can't be used"
"""How `fault` begins where the schema, and not the answer, is at fault."""


class _Section(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


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

    def body(self) -> dict[str, Any]:
        """The OpenAI request but for the model's name:
        greedy, so that the same model answers the same."""
        asked = (
            {"messages": self.messages} if self.messages is not None else {"prompt": self.prompt}
        )
        return {**asked, "max_tokens": self.max_tokens, "temperature": 0}


def read(data: dict[str, str]) -> dict[str, Prompt]:
    """The prompts by name. Raises ValueError with a sentence for the ConfigMap's author."""
    if not data or len(data) > MAX_PROMPTS:
        raise ValueError(f"it has {len(data)} entries: write 1 to {MAX_PROMPTS}")
    return {name: _entry(name, text) for name, text in sorted(data.items())}


def _entry(name: str, text: str) -> Prompt:
    try:
        _check_size(name, text)
        return Prompt.model_validate(yaml.load(text, Loader=_Loader))
    except RecursionError as error:
        raise ValueError(f"entry {name} is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(f"entry {name} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"]
        if first["type"] == "extra_forbidden":
            said = (
                "unknown; there are"
                f" {_known(Expectation if first['loc'][0] == 'expect' else Prompt)}"
            )
        raise ValueError(f"entry {name}: {where + ': ' if where else ''}{said}") from error


def _known(section: type[_Section]) -> str:
    return ", ".join(map(to_camel, section.model_fields))


def _check_size(name: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"entry {name} has {len(text)} characters: write at most {MAX_CHARACTERS}")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        # A few aliases of aliases become a document without an end as soon as it is written as
        # JSON.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"entry {name} has YAML aliases (*name): write what they stand for")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > MAX_DEPTH:
            raise ValueError(f"entry {name} is nested too deeply: write at most {MAX_DEPTH} levels")


def fault(expect: Expectation, answer: str) -> str | None:
    """What is wrong with the answer, or None."""
    if expect.exact is not None:
        return (
            None
            if answer.strip() == expect.exact.strip()
            else f"expected {_short(expect.exact)}, got {_short(answer)}"
        )
    if expect.regex is not None:
        found = re2.search(expect.regex, answer)
        return None if found else f"nothing matches {_short(expect.regex)} in {_short(answer)}"
    if expect.not_regex is not None:
        found = re2.search(expect.not_regex, answer)
        return f"{_short(found[0])} matches notRegex in {_short(answer)}" if found else None
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return (
            f"the answer has {len(answer)} characters: at most {MAX_ANSWER_CHARACTERS} are compared"
            " with jsonSchema"
        )
    try:
        _validator(expect.json_schema or {}).validate(json.loads(answer))
    except json.JSONDecodeError:
        return f"expected JSON, got {_short(answer)}"
    except jsonschema.ValidationError as error:
        return f"{_short(answer)} is not as jsonSchema says: {error.message[:200]}"
    except (
        jsonschema.SchemaError,
        referencing.exceptions.Unresolvable,
        RecursionError,
        _TooMuch,
        re2.error,
    ) as error:
        return f"{SCHEMA_UNUSABLE}: {type(error).__name__}: {str(error)[:200]}"
    return None


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Any:
    if isinstance(instance, str) and not re2.search(pattern, instance):
        yield jsonschema.ValidationError(f"{instance[:_SHOWN]!r} does not match {pattern!r}")


def _pattern_properties(_validator: Any, _patterns: Any, _instance: Any, _schema: Any) -> Any:
    yield jsonschema.ValidationError(
        "patternProperties is not supported in smoke prompts: name the properties"
    )


# Patterns come from whoever may write ConfigMaps:
# RE2 takes linear time, Python's own engine may take for ever.
_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties}
)


class _TooMuch(Exception):
    """The schema takes more steps than an answer may."""


def _validator(schema: dict[str, Any]) -> Any:
    """A validator that takes a bounded number of steps, because a handful of keywords can stand for
    any number of checks."""
    references = itertools.count(MAX_REFERENCES, -1)
    steps = itertools.count(MAX_STEPS, -1)

    def limited(name: str, keyword: Any) -> Any:
        def check(*arguments: Any) -> Any:
            if name in ("$ref", "$dynamicRef") and next(references) <= 0:
                raise _TooMuch(f"more than {MAX_REFERENCES} references are followed")
            if next(steps) <= 0:
                raise _TooMuch(f"more than {MAX_STEPS} keywords are looked at")
            yield from keyword(*arguments) or ()

        return check

    counted = {name: limited(name, keyword) for name, keyword in _Validator.VALIDATORS.items()}
    bounded = jsonschema.validators.extend(_Validator, counted)  # type: ignore[no-untyped-call]
    return bounded(schema, registry=referencing.Registry())


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
