"""A real MLflow server for tests: one for the session, with an SQL store and proxied artifacts.

Use it with `from mlflow_fixtures import mlflow_server`; it yields the tracking URI.
"""

from collections.abc import Iterator

import pytest

from devstack.registry import mlflow_server as running_server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tracking URI of a server that runs until the session ends."""
    with running_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.uri
