"""The two CustomResourceDefinitions: names, subresources, and the status before an operator looked."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from llm_operator.crds.apikey import ApiKeyRoot
from llm_operator.crds.columns import API_KEY, LLM_DEPLOYMENT
from llm_operator.crds.common import GROUP, VERSION
from llm_operator.crds.llmdeployment import LLMDeploymentRoot
from llm_operator.crds.schema import structural
from llm_operator.crds.status import ApiKeyStatus, LLMDeploymentStatus

Json = dict[str, Any]


def _unseen(kind: str, status: str) -> Json:
    message = "no operator has looked at it yet"
    moment = "1970-01-01T00:00:00Z"
    return {
        "type": kind,
        "status": status,
        "reason": "Pending",
        "message": message,
        "lastTransitionTime": moment,
    }


UNSEEN: Json = {"conditions": [_unseen("Ready", "Unknown"), _unseen("Reconciling", "True")]}
"""The status until the operator writes one:
kstatus takes a resource without conditions for finished."""


def _definition(
    kind: str,
    plural: str,
    short: list[str],
    root: type[BaseModel],
    status: type[BaseModel],
    **extra: Any,
) -> Json:
    schema = structural(root)
    schema["properties"] |= {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "status": structural(status) | {"default": UNSEEN},
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        **extra,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
                "categories": ["llm"],
            },
            "versions": [version],
        },
    }


def definitions() -> dict[str, Json]:
    """The CustomResourceDefinitions by file name."""
    deployment = _definition(
        "LLMDeployment",
        "llmdeployments",
        ["llmd", "llmds"],
        LLMDeploymentRoot,
        LLMDeploymentStatus,
        subresources={
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        additionalPrinterColumns=LLM_DEPLOYMENT,
    )
    key = _definition(
        "ApiKey",
        "apikeys",
        ["llmkey", "llmkeys"],
        ApiKeyRoot,
        ApiKeyStatus,
        subresources={"status": {}},
        additionalPrinterColumns=API_KEY,
    )
    return {f"{crd['metadata']['name'].partition('.')[0]}.yaml": crd for crd in (deployment, key)}


def write(folder: Path) -> list[Path]:
    """Write one YAML file per CRD into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, crd in definitions().items():
        (folder / name).write_text(yaml.safe_dump(crd, sort_keys=False, width=120))
    return [folder / name for name in definitions()]
