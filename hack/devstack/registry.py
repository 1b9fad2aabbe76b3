"""A real MLflow server on loopback, and what a person does with it:
push a model folder, move an alias.

`python -m devstack.registry push NAME FOLDER [--alias ALIAS]` and `… alias NAME ALIAS VERSION`
against MLFLOW_TRACKING_URI.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from devstack.ports import free_port
from devstack.processes import Child, answers, wait_until
from devstack.waits import complain


class MlflowServer:
    """An MLflow tracking server and registry with an SQL store and proxied artifacts.

    These lie in the folder, or at `artifacts`, `s3://…`, for which `env` has the store's address
    and keys. `options` go to `mlflow server`. `host` is the address of this machine that it listens
    on.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        artifacts: str | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        port = port or free_port()
        self.env = env or {}
        self.uri = f"http://{host}:{port}"
        self.folder = folder
        self.command = [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", host, "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", artifacts or str(folder / "artifacts")),
            *options,
        ]
        self.child: Child | None = None

    def start(self) -> None:
        """Start, or start again with the same store and address; returns when it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start without waiting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The server's own telemetry and its job queue would only cost start-up time here.
        env = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.child = Child(
            "MLflow server", self.command, self.folder / "server.log", env={**env, **self.env}
        )

    def wait(self, say: Callable[[str], None] = complain) -> None:
        """Return once a launched server answers, telling `say` of a longer wait;
        raises `StartFailed`."""
        assert self.child is not None
        wait_until(self.child, lambda: answers(f"{self.uri}/health"), timeout_seconds=120, say=say)

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()


@contextmanager
def mlflow_server(
    folder: Path, artifacts: str | None = None, env: Mapping[str, str] | None = None
) -> Iterator[MlflowServer]:
    """A running server that is stopped at the end of the block."""
    server = MlflowServer(folder, artifacts=artifacts, env=env)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def push(tracking_uri: str, name: str, folder: Path, alias: str | None = None) -> str:
    """Upload a model folder as a new version of `name` and return the version;
    move `alias` to it if given.

    `mlflow.register_model` refuses a raw folder, which has no MLmodel file;
    a version made from a run's files works.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import RestException

    client = MlflowClient(tracking_uri, tracking_uri)
    try:
        client.create_registered_model(name)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = client.create_run("0", run_name=f"push-{name}")
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.set_terminated(run.info.run_id)
    version = client.create_model_version(
        name,
        source=f"runs:/{run.info.run_id}/model",
        run_id=run.info.run_id,
        await_creation_for=None,
    )
    if alias:
        client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def set_alias(tracking_uri: str, name: str, alias: str, version: str) -> None:
    """Let `alias` name `version` from now on: what a promotion is."""
    from mlflow import MlflowClient

    MlflowClient(tracking_uri, tracking_uri).set_registered_model_alias(name, alias, version)


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m devstack.registry", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pushing = commands.add_parser("push", help="upload a folder as a new model version")
    pushing.add_argument("name")
    pushing.add_argument("folder", type=Path)
    pushing.add_argument("--alias")
    moving = commands.add_parser("alias", help="move an alias to a version")
    moving.add_argument("name")
    moving.add_argument("alias")
    moving.add_argument("version")
    arguments = parser.parse_args()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        parser.error("set MLFLOW_TRACKING_URI to the address of the MLflow server")
    if arguments.command == "push":
        version = push(uri, arguments.name, arguments.folder, arguments.alias)
        print(
            f"{arguments.name} version {version}"
            + (f", alias {arguments.alias}" if arguments.alias else "")
        )
    else:
        set_alias(uri, arguments.name, arguments.alias, arguments.version)
        print(f"{arguments.name}@{arguments.alias} -> version {arguments.version}")


if __name__ == "__main__":
    main()
