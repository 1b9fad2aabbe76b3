"""The API of this operator: LLMDeployment and ApiKey as Pydantic models,
and the CRDs made from them."""

from llm_operator.crds.access import AccessSpec
from llm_operator.crds.apikey import ApiKeySpec
from llm_operator.crds.common import API_VERSION, GROUP, VERSION, Condition
from llm_operator.crds.llmdeployment import LLMDeploymentSpec
from llm_operator.crds.manifests import UNSEEN, definitions, write
from llm_operator.crds.model import AdapterSpec, MlflowModel, ServedModel
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
