"""`kubectl explain` and docs/reference.md:
each field is described by a sentence that can be read alone."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_operator import crds
from llm_operator.crds import AccessSpec, LLMDeploymentSpec, definitions
from llm_operator.crds.common import quantity_value, size
from llm_operator.crds.model import MAX_ADAPTERS
from llm_operator.crds.rollout import LoadProbe, RolloutSpec, ShadowSpec
from llm_operator.crds.schema import Section, described_by
from llm_runtime import contract
from llm_runtime.api.state.load_probe import ProbeBody

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


def sections_of_settings() -> Iterator[tuple[type[Section], type[BaseModel], ast.ClassDef]]:
    """Each section of a CRD with the section of the configuration that describes it."""
    for path in sorted(Path(str(crds.__file__)).parent.glob("[!_]*.py")):
        module = importlib.import_module(f"llm_operator.crds.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if (
                    isinstance(decorator, ast.Call)
                    and ast.unparse(decorator.func) == "described_by"
                ):
                    source = getattr(contract, ast.unparse(decorator.args[0]))
                    yield getattr(module, node.name), source, node


def as_the_runtime_has_it(value: Any) -> Any:
    return int(quantity_value(value)) if isinstance(value, str) and value[:1].isdigit() else value


def test_a_default_of_the_runtime_stands_in_its_contract_alone() -> None:
    compared = 0
    for section, source, node in sections_of_settings():
        for line in node.body:
            if not isinstance(line, ast.AnnAssign) or line.value is None:
                continue
            name = ast.unparse(line.target)
            if name not in source.model_fields:
                continue
            # Where a CRD says nothing, the runtime has its own default, or nothing either.
            value = section.model_fields[name].default
            if value in (None, "") or isinstance(value, Section):
                continue
            assert as_the_runtime_has_it(value) == source.model_fields[name].default, name
            assert not isinstance(line.value, ast.Constant), (
                f"{section.__name__}.{name}: take the default from llm_runtime.contract"
            )
            compared += 1
    assert compared > 20


def test_bounds_and_defaults_that_both_programs_need_are_one_number() -> None:
    fields = LoadProbe.model_fields
    for name in ("concurrency", "seconds", "prompt_tokens", "max_tokens"):
        assert ceiling(fields[name]) == ceiling(ProbeBody.model_fields[name])
    assert ShadowSpec().percent == contract.ShadowFile.model_fields["percent"].default
    assert ShadowSpec().max_in_flight == contract.ShadowFile.model_fields["max_in_flight"].default
    assert RolloutSpec().drain_seconds == contract.ServerConfig().drain_seconds
    assert AccessSpec().default_tier == contract.RuntimeConfig.model_fields["default_tier"].default
    assert contract.EngineConfig().max_adapters == 2 * MAX_ADAPTERS


def ceiling(field: FieldInfo) -> float:
    return next(each.le for each in field.metadata if hasattr(each, "le"))


@pytest.mark.parametrize(
    ("count", "quantity"),
    [(1 << 20, "1Mi"), (3 << 30, "3Gi"), (1536, "1536"), (2048, "2Ki"), (1, "1")],
)
def test_a_number_of_bytes_is_written_as_the_shortest_quantity(count: int, quantity: str) -> None:
    assert size(count) == quantity
    assert quantity_value(quantity) == count


def test_a_field_that_nobody_describes_is_found_at_import() -> None:
    class Alone(Section):
        colour: str

    with pytest.raises(KeyError, match="colour"):
        described_by(contract.EngineConfig)(Alone)
