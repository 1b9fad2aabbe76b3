"""spec.model.uri: which version an address outside any registry stands for, and how the pods
reach its files."""

import hashlib
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


def claim(uri: str) -> str | None:
    """The PersistentVolumeClaim that `uri` names a folder of, if it does."""
    return uri.removeprefix(CLAIM).partition("/")[0] if uri.startswith(CLAIM) else None


def path(uri: str | None) -> list[Manifest]:
    """The variable that tells both containers where the claim's folder lies:
    paths are not for configuration files."""
    if not claim(uri or ""):
        return []
    folder = (uri or "").removeprefix(CLAIM).rstrip("/")
    # The kubelet would write another variable's value, such as a Secret's, in the place of $(NAME):
    # the path is shown where it is no folder.
    literal = f"{CLAIMS_MOUNT}/{folder}".replace("$", "$$")
    return [{"name": contract.ENV_MODEL_PATH, "value": literal}]


def volume(uri: str | None) -> list[Manifest]:
    """The claim as a volume of the pod, which may not write to it."""
    name = claim(uri or "")
    return (
        [{"name": "source", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}]
        if name
        else []
    )


def mount(uri: str | None) -> list[Manifest]:
    """Where the containers find it."""
    name = claim(uri or "")
    return (
        [{"name": "source", "mountPath": f"{CLAIMS_MOUNT}/{name}", "readOnly": True}]
        if name
        else []
    )


def configured(model: dict[str, Any]) -> str:
    """The version in a pod's configuration file, whichever way it names its model."""
    return str(model["mlflow"]["version"]) if "mlflow" in model else version(model["uri"]).version
