"""docs/reference.md has what only some servers have:
management, a database, adapters, a download."""

import pytest

from devstack import reference


@pytest.mark.parametrize(
    "path", ["/v1/key", "/load_model", "/unload_model", "/generate_apikey", "/", "/v1/models"]
)
def test_every_endpoint_is_listed(path: str) -> None:
    assert f"| `{path}` |" in "\n".join(reference.endpoints())


@pytest.mark.parametrize(
    "name",
    [
        "llm_database_up",
        "llm_adapter_loaded",
        "llm_adapter_failed",
        "llm_download_bytes",
        "model_loaded",
    ],
)
def test_every_metric_is_listed(name: str) -> None:
    assert f"| `{name}` |" in "\n".join(reference.metrics())
