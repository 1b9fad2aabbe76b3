"""A real MLflow server that wants a name and a password."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from devstack.registry import MlflowServer
from secrets_told import invented

ADMIN = ("admin", invented("mlflow-admin"))
READER = ("reader", invented("mlflow-reader"))


def ask(
    uri: str,
    path: str,
    auth: tuple[str, str] | None = None,
    workspace: str = "",
    method: str = "POST",
    **body: Any,
) -> None:
    """What an administrator does over MLflow's own API."""
    headers = {"X-MLFLOW-WORKSPACE": workspace} if workspace else {}
    url = f"{uri}/api/{path}"
    answer = httpx.request(
        method, url, json=body, auth=auth, headers=headers, timeout=20, trust_env=False
    )
    assert answer.is_success, answer.text


@contextmanager
def guarded_mlflow(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Its address. ADMIN may everything, READER may read.
    `host`: the address of this machine that it listens on."""
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri ="
        f" sqlite:///{folder / 'users.db'}\nadmin_username = {ADMIN[0]}\nadmin_password ="
        f" {ADMIN[1]}\nauthorization_function ="
        " mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
    }
    anyone = ("--allowed-hosts", "*")  # else it refuses all but localhost
    server = MlflowServer(folder, env=env, options=("--app-name", "basic-auth", *anyone), host=host)
    server.start()
    try:
        ask(server.uri, "2.0/mlflow/users/create", ADMIN, username=READER[0], password=READER[1])
        yield server.uri
    finally:
        server.stop()
