"""spec.model.uri: which version an address outside any registry stands for, and how the pods
reach its files."""

import hashlib
from dataclasses import dataclass
from typing import Any

from llm_operator.state import Manifest, ModelVersion
from llm_runtime import contract

HUB = "hf://"
CLAIM = "pvc://"
CLAIMS_MOUNT = "/mnt/claims"
VERSION_DIGITS = 12


def version(uri: str) -> ModelVersion:
    """The version that `uri` stands for: the commit on the Hub, else a digest of the address,
    which is all there is."""
    if uri.startswith(HUB):
        repository, _, commit = uri.removeprefix(HUB).partition("@")
        return ModelVersion(repository, commit[:VERSION_DIGITS], uri)
    name = uri.rstrip("/").rpartition("/")[2]
    return ModelVersion(name, hashlib.sha256(uri.encode()).hexdigest()[:VERSION_DIGITS], uri)


@dataclass(frozen=True)
class Claimed:
    """What a pod has of the claim with the model's files; nothing where `uri` names none."""

    variables: tuple[Manifest, ...] = ()
    """Tells both containers where the folder lies: paths are not for configuration files."""
    mounts: tuple[Manifest, ...] = ()
    """Where the containers find the claim."""
    volumes: tuple[Manifest, ...] = ()
    """The claim as a volume of the pod, which may not write to it."""


def claimed(uri: str | None) -> Claimed:
    """The parts of a pod that reach the folder of a PersistentVolumeClaim."""
    if uri is None or not uri.startswith(CLAIM):
        return Claimed()
    folder = uri.removeprefix(CLAIM).rstrip("/")
    name = folder.partition("/")[0]
    readable = {"claimName": name, "readOnly": True}
    mount = {"name": "source", "mountPath": f"{CLAIMS_MOUNT}/{name}", "readOnly": True}
    # The kubelet would write another variable's value, such as a Secret's, in the place of $(NAME):
    # the path is shown where it is no folder.
    literal = f"{CLAIMS_MOUNT}/{folder}".replace("$", "$$")
    return Claimed(
        variables=({"name": contract.ENV_MODEL_PATH, "value": literal},),
        mounts=(mount,),
        volumes=({"name": "source", "persistentVolumeClaim": readable},),
    )


def configured(model: dict[str, Any]) -> str:
    """The version in a pod's configuration file, whichever way it names its model."""
    return str(model["mlflow"]["version"]) if "mlflow" in model else version(model["uri"]).version
