"""`kubectl explain` and docs/reference.md:
each field is described by a sentence that can be read alone."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from llm_operator.crds import LLMDeploymentSpec, definitions
from llm_operator.crds.schema import Section, described_by
from llm_runtime import contract

LEAST_WORDS = 4
GENERAL = {"apiVersion", "kind", "metadata"}
"""The API server describes these itself."""


def fields(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field.get("description", "")
        yield from fields(f"{path}.{name}", field)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from fields(f"{path}[]", schema[inner])


def of_crds() -> Iterator[tuple[str, str]]:
    for crd in definitions().values():
        kind = crd["spec"]["names"]["kind"]
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        yield kind, schema["description"]
        yield from (
            found for found in fields(kind, schema) if found[0].partition(".")[2] not in GENERAL
        )


def of_settings() -> Iterator[tuple[str, str]]:
    for section in vars(contract).values():
        if (
            isinstance(section, type)
            and issubclass(section, BaseModel)
            and section is not BaseModel
        ):
            for name, field in section.model_fields.items():
                yield f"{section.__name__}.{name}", field.description or ""


@pytest.mark.parametrize("described", [of_crds, of_settings])
def test_each_field_is_described_by_whole_sentences(described: Any) -> None:
    found = list(described())
    assert len(found) > 100
    for path, text in found:
        assert len(text.split()) >= LEAST_WORDS, f"{path}: {text!r} says too little"
        assert re.match(r"[A-Z`0-9]", text), f"{path}: {text!r} begins in mid-sentence"
        assert text.endswith("."), f"{path}: {text!r} has no end"
        assert not re.match(r"(Its|It|They|Their|This|Of|And|Or)\b", text), (
            f"{path}: {text!r} needs its neighbours"
        )


def test_a_setting_of_the_runtime_has_one_description_in_both_places() -> None:
    engine = LLMDeploymentSpec.model_fields["engine"].annotation
    assert engine is not None
    assert (
        engine.model_fields["dtype"].description
        == contract.EngineConfig.model_fields["dtype"].description
    )


def test_a_field_that_nobody_describes_is_found_at_import() -> None:
    class Alone(Section):
        colour: str

    with pytest.raises(KeyError, match="colour"):
        described_by(contract.EngineConfig)(Alone)
