"""docs/compatibility.md promises nothing that is not there."""

import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from harness import Harness, config
from llm_runtime.api.server import make_server
from llm_runtime.app import create_app
from llm_runtime.contract import RuntimeConfig
from llm_runtime.settings import Environment, renamed

ROOT = Path(__file__).parents[3]


def rows() -> list[list[str]]:
    """(names, what became of them, how) of every row."""
    text = (ROOT / "docs" / "compatibility.md").read_text()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]


def promised(cell: int = 0, status: str = "works") -> set[str]:
    return {
        name for row in rows() if row[1] == status for name in re.findall(r"`([^`]+)`", row[cell])
    }


async def _never() -> Any:
    raise AssertionError("not loaded here")


def paths(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Names of settings as the file has them: `server.corsOrigins`, `tiers[].name`."""
    found = set()
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        found.add(path)
        for inner in _models(field.annotation):
            repeated = "tuple" in str(field.annotation)
            found |= paths(inner, f"{path}[]." if repeated else f"{path}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def test_every_row_says_what_became_of_it() -> None:
    for row in rows():
        assert len(row) == 3, row
        assert row[1] in ("", "---", "works", "renamed", "not taken over"), row
        assert row[1] in ("", "---", "works") or row[2], f"no reason for {row[0]}"


async def test_every_endpoint_that_works_is_there(api: Harness) -> None:
    known = set((await api.client.get("/openapi.json")).json()["paths"]) | {
        "/docs",
        "/redoc",
        "/openapi.json",
    }
    named = {path for name in promised() for path in re.findall(r"^(?:GET|POST) (/\S+)$", name)}
    assert len(named) >= 20
    assert named <= known, named - known


async def test_every_metric_that_works_is_exposed(run: Any) -> None:
    async with run() as api:
        api.engine.gpu_memory_bytes = 1
        await api.chat()
        await api.client.post("/predict", json={})
        text = (await api.client.get("/metrics")).text
    exposed = {family.name for family in text_string_to_metric_families(text)}
    words = {name for cell in (0, 2) for name in promised(cell)}
    named = {
        name
        for name in words
        if re.fullmatch(
            r"(api|http|tokens|gpu|model)_\w*(_total|_seconds|_bytes|_second|loaded)", name
        )
    }
    assert len(named) >= 8
    assert {name.removesuffix("_total") for name in named} <= exposed


def test_every_setting_that_is_named_as_new_exists() -> None:
    known = paths(RuntimeConfig)
    text = " ".join(row[2] for row in rows() if len(row) == 3)
    named = set(re.findall(r"`((?:server|engine|model|tiers\[\])\.[\w.]+)`", text))
    assert len(named) > 20
    assert named <= known, named - known


def test_every_environment_variable_that_works_is_read() -> None:
    # CUDA reads its own; of API_WORKERS only 1 is taken.
    read = {name.upper() for name in Environment.model_fields} | {
        "CUDA_VISIBLE_DEVICES",
        *renamed.HARMLESS,
    }
    assert {name for name in promised() if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", name)} <= read


async def test_every_body_field_that_works_is_in_the_document(api: Harness) -> None:
    schemas = (await api.client.get("/openapi.json")).json()["components"]["schemas"]
    known = {name for schema in schemas.values() for name in schema.get("properties", {})}
    for name in (
        "max_length",
        "stop_tokens",
        "max_new_tokens",
        "top_k",
        "session_id",
        "num_return_sequences",
        "stop_sequences",
        "request_time",
        "completions",
        "logprob",
        "tokens_generated",
        "cached",
        "tools",
        "parallel_tool_calls",
        "response_format",
        "safety_identifier",
        "prompts",
    ):
        assert name in promised(), name
        assert name in known, name


def test_the_application_can_be_made_without_a_model() -> None:
    assert create_app(make_server(config(), _never)).openapi()["paths"]
