"""Download a registered LoRA adapter in PEFT's format to a verified folder. Needs no torch."""

import os
import posixpath
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llm_runtime import contract
from llm_runtime.contract import MlflowVersion, PinnedAdapter, RegistryAccess
from llm_runtime.errors import ConfigInvalid, ModelNotFound
from llm_runtime.fetching.fetch import Fetcher
from llm_runtime.fetching.registry import MlflowRegistry
from llm_runtime.files.locate import MAX_DEPTH, Artifacts, Located, check_path
from llm_runtime.files.package import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    without_weights,
)
from llm_runtime.files.verify import safetensors_keys

_one_server_at_a_time = threading.Lock()
"""MLflow's client reads its credentials from the environment, which all threads share."""


class AdapterFetcher(Fetcher):
    """Fetches an adapter's two files, from whichever folder of the artifacts holds them."""

    def _locate(self, artifacts: Artifacts, sub_path: str) -> Located:
        return locate_adapter(artifacts, sub_path)

    def _verify(self, folder: Path) -> None:
        safetensors_keys(folder / ADAPTER_WEIGHTS)


def fetch_adapter(adapter: PinnedAdapter, access: RegistryAccess, models: Path) -> Path:
    """The verified folder of the adapter's version.
    Slow: call it in a thread. Raises errors.Fatal subclasses."""
    version = MlflowVersion(
        tracking_uri=access.tracking_uri,
        name=adapter.model,
        version=adapter.version,
        sub_path=adapter.sub_path,
        anew=adapter.anew or None,
    )
    with registry_environment(access):
        return AdapterFetcher(MlflowRegistry(access.tracking_uri), models).fetch(version)


def locate_adapter(artifacts: Artifacts, sub_path: str = "") -> Located:
    """Find the one adapter.
    Raises ModelNotFound, ModelCorrupt, or ConfigInvalid if there are several."""
    for path in artifacts.sizes:
        check_path(path)
    base = sub_path.strip("/")
    inside = [
        folder
        for folder in artifacts.folders()
        if (folder == base or not base or folder.startswith(f"{base}/"))
        and ADAPTER_CONFIG in artifacts.names(folder)
        and folder.removeprefix(base).strip("/").count("/") < MAX_DEPTH
    ]
    if not inside:
        where = f"subPath {base!r}" if base else "the artifacts"
        raise ModelNotFound(
            f"no {ADAPTER_CONFIG} in {where}; register the folder that PEFT's save_pretrained wrote"
        )
    if len(inside) > 1 and base not in inside:
        raise ConfigInvalid(
            f"the artifacts hold several adapters: {', '.join(inside)}; name one in mlflow.subPath"
        )
    folder = base if base in inside else inside[0]
    names = artifacts.names(folder)
    if ADAPTER_WEIGHTS not in names:
        raise without_weights(repr(folder or "the root"), pickled=ADAPTER_PICKLE in names)
    files = {name: posixpath.join(folder, name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    return Located(folder, files)


@contextmanager
def registry_environment(access: RegistryAccess) -> Iterator[None]:
    """Give MLflow's client the credentials in `access` during the block.
    Other threads wait for their turn."""
    with _one_server_at_a_time, ExitStack() as stack:
        wanted = {
            contract.ENV_MLFLOW_USERNAME: access.username,
            contract.ENV_MLFLOW_PASSWORD: access.password,
            contract.ENV_MLFLOW_TOKEN: access.token,
            contract.ENV_MLFLOW_WORKSPACE: access.workspace,
            contract.ENV_MLFLOW_CA_FILE: "",
            contract.ENV_ARTIFACT_HOSTS: ",".join(access.artifact_hosts),
        }
        if access.ca:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".crt"))
            file.write(access.ca)
            file.flush()
            wanted[contract.ENV_MLFLOW_CA_FILE] = file.name
        if not any(
            wanted.values()
        ):  # Without an operator, the credentials may already be in the environment.
            wanted = {}
        before = {name: os.environ.get(name) for name in wanted}
        _set(wanted)
        try:
            yield
        finally:
            _set({name: value or "" for name, value in before.items()})


def _set(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
