"""The API of this operator: LLMDeployment and ApiKey as Pydantic models,
and the CRDs made from them."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from llm_operator.crds.access import AccessSpec
from llm_operator.crds.apikey import ApiKeyRoot, ApiKeySpec
from llm_operator.crds.common import API_VERSION, GROUP, VERSION, Condition
from llm_operator.crds.llmdeployment import LLMDeploymentRoot, LLMDeploymentSpec
from llm_operator.crds.model import AdapterSpec, MlflowModel, ServedModel
from llm_operator.crds.schema import structural
from llm_operator.crds.status import (
    AdapterCandidate,
    AdapterStatus,
    ApiKeyStatus,
    AvailableVersion,
    CandidateStatus,
    DirectiveStatus,
    GateVerdict,
    HistoryEntry,
    LLMDeploymentStatus,
    ModelStatus,
    RevisionStatus,
    StableStatus,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "UNSEEN",
    "VERSION",
    "AccessSpec",
    "AdapterCandidate",
    "AdapterSpec",
    "AdapterStatus",
    "ApiKeySpec",
    "ApiKeyStatus",
    "AvailableVersion",
    "CandidateStatus",
    "Condition",
    "DirectiveStatus",
    "GateVerdict",
    "HistoryEntry",
    "LLMDeploymentSpec",
    "LLMDeploymentStatus",
    "MlflowModel",
    "ModelStatus",
    "RevisionStatus",
    "ServedModel",
    "StableStatus",
    "definitions",
    "write",
]

Json = dict[str, Any]


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Json:
    return {
        "name": name,
        "type": kind,
        "jsonPath": path,
        **({"priority": priority} if priority else {}),
    }


def _condition(kind: str, field: str) -> str:
    return f".status.conditions[?(@.type=='{kind}')].{field}"


_AGE = _column("Age", ".metadata.creationTimestamp", "date")


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
        additionalPrinterColumns=[
            # A row has about 90 characters: what is more is for `-o wide`.
            _column("Ready", _condition("Ready", "status")),
            _column("Available", _condition("Available", "status")),
            _column("Reason", _condition("Ready", "reason")),
            _column("Version", ".status.stable.version"),
            _column("Target", ".status.candidate.version"),
            _column("Pods", ".status.readyReplicas", "integer"),
            _column("Desired", ".spec.replicas", "integer"),
            _column("Model", ".status.model.name", priority=1),
            _column("Revision", ".status.stable.revision", priority=1),
            _column("Waiting", ".status.model.available.version", priority=1),
            _column("Adapters", _condition("AdaptersReady", "status"), priority=1),
            _column("URL", ".status.url", priority=1),
            _column("Image", ".status.stable.image", priority=1),
            _column("Message", _condition("Ready", "message"), priority=1),
            _AGE,
        ],
    )
    key = _definition(
        "ApiKey",
        "apikeys",
        ["llmkey", "llmkeys"],
        ApiKeyRoot,
        ApiKeyStatus,
        subresources={"status": {}},
        additionalPrinterColumns=[
            _column("Ready", _condition("Ready", "status")),
            _column("Reason", _condition("Ready", "reason")),
            _column("Owner", ".spec.owner"),
            _column("Tier", ".spec.tier"),
            _column("Key", ".status.prefix"),
            _column("Secret", ".status.secretName"),
            # No date: kubectl shows one as an age, and one to come as <invalid>.
            _column("Expires", ".spec.expiresAt"),
            _column("Message", _condition("Ready", "message"), priority=1),
            _AGE,
        ],
    )
    return {f"{crd['metadata']['name'].partition('.')[0]}.yaml": crd for crd in (deployment, key)}


def write(folder: Path) -> list[Path]:
    """Write one YAML file per CRD into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, crd in definitions().items():
        (folder / name).write_text(yaml.safe_dump(crd, sort_keys=False, width=120))
    return [folder / name for name in definitions()]
