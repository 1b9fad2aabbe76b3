"""Pydantic model → structural OpenAPI v3 schema, as a CustomResourceDefinition wants it."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

Json = dict[str, Any]


class Section(BaseModel):
    """A part of a custom resource: camelCase in YAML,
    frozen in Python, docstrings become descriptions.

    Unknown fields are ignored when reading (a newer CRD may be installed)
    and refused by the API server's own pruning.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )


AnySection = TypeVar("AnySection", bound=Section)


def described_by(source: type[BaseModel]) -> Callable[[type[AnySection]], type[AnySection]]:
    """Fields without a docstring have the description of the same field of `source`:
    a setting is described once."""

    def describe(section: type[AnySection]) -> type[AnySection]:
        for name, field in section.model_fields.items():
            field.description = field.description or source.model_fields[name].description
        section.model_rebuild(force=True)
        return section

    return describe


def rules(*rules: tuple[str, str]) -> Json:
    """CEL rules as (expression, message) pairs; the message says what to write instead."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]
    }


def one_of(fields: str, where: str) -> tuple[str, str]:
    """The rule that exactly one of these fields, with spaces between them, is written;
    `where`: in what."""
    names = fields.split()
    given = ", ".join(f"has(self.{name})" for name in names)
    return (
        f"[{given}].filter(x, x).size() == 1",
        f"write exactly one of {', '.join(names)} per {where}",
    )


def structural(model: type[BaseModel]) -> Json:
    """The schema of `model` without references, unions with null, titles or object defaults.

    Raises ValueError on what Kubernetes can't express: real unions and recursion.
    """
    schema = model.model_json_schema(by_alias=True)
    return _clean(schema, schema.get("$defs", {}), ())


_KEPT = (
    "description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "minProperties", "maxProperties", "required", "x-kubernetes-validations",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
)  # fmt: skip


def _clean(schema: Json, definitions: dict[str, Json], path: tuple[str, ...]) -> Json:
    schema = _flatten(schema, definitions, path)
    if "const" in schema:
        schema["enum"] = [schema["const"]]
    kept = {key: schema[key] for key in _KEPT if key in schema}
    # Object and list defaults would be written into stored objects and show as differences in Git.
    if isinstance(kept.get("default"), dict | list) or kept.get("default", ...) in (None, ""):
        kept.pop("default", None)
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    if "exclusiveMinimum" in schema:
        kept |= {"minimum": schema["exclusiveMinimum"], "exclusiveMinimum": True}
    if "properties" in schema:
        kept["properties"] = {
            name: _clean(field, definitions, (*path, name))
            for name, field in schema["properties"].items()
        }
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _clean(
            schema["additionalProperties"], definitions, (*path, "*")
        )
    if "items" in schema:
        kept["items"] = _clean(schema["items"], definitions, (*path, "[]"))
    if not kept.get("type") and not kept.get("x-kubernetes-int-or-string"):
        raise ValueError(f"{'.'.join(path)}: no single type, Kubernetes schemas have no unions")
    return kept


def _flatten(schema: Json, definitions: dict[str, Json], path: tuple[str, ...]) -> Json:
    """Follow `$ref` and the `X | None` union until neither is left; what stands outside wins."""
    if len(path) > 24:
        raise ValueError(f"{'.'.join(path)}: recursive schema")
    while "$ref" in schema or "anyOf" in schema:
        schema = dict(schema)
        if "$ref" in schema:
            inner = definitions[schema.pop("$ref").rpartition("/")[2]]
        else:
            choices = [choice for choice in schema.pop("anyOf") if choice.get("type") != "null"]
            inner = choices[0] if len(choices) == 1 else {}
            if len(choices) > 1 and not schema.get("x-kubernetes-int-or-string"):
                raise ValueError(f"{'.'.join(path)}: a union, Kubernetes schemas have none")
        joined = [
            *inner.get("x-kubernetes-validations", []),
            *schema.get("x-kubernetes-validations", []),
        ]
        schema = {**inner, **schema} | ({"x-kubernetes-validations": joined} if joined else {})
    return dict(schema)


def plain(section: Section | tuple[Any, ...] | None) -> Any:
    """A part of the specification as Kubernetes' own YAML, without what was not written."""
    if isinstance(section, tuple):
        return [plain(item) for item in section]
    return (
        section.model_dump(mode="json", by_alias=True, exclude_none=True)
        if section is not None
        else None
    )
