"""The newest version of a registered model, of a real registry."""

from pathlib import Path

import pytest

from llm_runtime.errors import ModelNotFound
from llm_runtime.fetching.registry import MlflowRegistry

# MLflow takes seconds to import and to make its database.
pytestmark = pytest.mark.torch


def test_the_newest_version_is_the_highest_number_not_the_last_in_the_alphabet(
    tmp_path: Path,
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("bot")
    for _ in range(11):
        client.create_model_version("bot", str(tmp_path))
    assert MlflowRegistry(uri).newest("bot") == "11"
    with pytest.raises(ModelNotFound, match="nobody"):
        MlflowRegistry(uri).newest("nobody")
    for odd in ("it's a bot", 'the "new" bot'):
        client.create_registered_model(odd)
        client.create_model_version(odd, str(tmp_path))
        assert MlflowRegistry(uri).newest(odd) == "1"
