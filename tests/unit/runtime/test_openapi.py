"""The OpenAPI document is true: whatever is sent,
no 500 and no status, type or form that it does not name."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from harness import KEY, config
from llm_runtime.api.server import make_server
from llm_runtime.app import create_app
from llm_runtime.auth.callers import KeyRing
from llm_runtime.contract import EMBEDDINGS_PATH
from unit.runtime.responses import keeping
from unit.runtime.test_embeddings import MODEL, WRITTEN

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SHAPES = {"OpenAI": "OpenAIErrorAnswer", "Anthropic": "AnthropicErrorAnswer"}
"""Of errors, by the tag of a dialect."""
EXAMPLES = 60
"""Of each operation and kind."""


async def _never() -> Any:
    raise AssertionError("not loaded here")


DOCUMENT = create_app(make_server(config(), _never, KeyRing(Path("no-keys")))).openapi()


def test_every_operation_has_examples_errors_and_security() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            if "requestBody" not in operation:
                continue
            assert operation["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}], path
            assert {"400", "401", "403", "404", "413", "429", "500", "503"} < set(
                operation["responses"]
            ), path
            shape = operation["responses"]["400"]["content"]["application/json"]["schema"][
                "$ref"
            ].rsplit("/", 1)[1]
            assert shape == SHAPES.get(operation["tags"][0], "OwnErrorAnswer"), path
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit(
                "/", 1
            )[1]
            assert DOCUMENT["components"]["schemas"][name]["examples"], path


async def test_the_examples_are_answered(api: Any) -> None:
    found = (await api.client.get("/openapi.json")).json()
    for path, operations in found["paths"].items():
        for operation in operations.values():
            if (body := operation.get("requestBody")) and operation["tags"] != ["management"]:
                name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                [example] = found["components"]["schemas"][name]["examples"]
                api.engine.max_model_length = 4096
                embeds = path == EMBEDDINGS_PATH
                api.engine.embedding = MODEL if embeds else None
                api.engine.script = [WRITTEN if embeds else "Hello"]
                response = await api.client.post(path, json=example)
                assert response.status_code == 200, (path, response.text)


@pytest.mark.torch  # Not for torch, but for its time.
@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_nothing_that_is_sent_makes_a_500_or_an_answer_that_is_not_documented(
    live: Any, path: str
) -> None:
    """Bodies that fit the document and bodies that don't; the engine behind is a scripted one.
    A test for each path: all of them together would take longer than a test may."""
    with live() as server:
        keeping(server)
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for operation in schema[path].values():
            for mode in GenerationMode:

                @settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    database=None,
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def attempt(case: Any) -> None:
                    case.call_and_validate(headers={"X-API-Key": KEY}, checks=CHECKS)

                with suppress(Unsatisfiable):  # Without parameters and body nothing can be wrong.
                    attempt()
