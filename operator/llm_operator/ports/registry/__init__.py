"""All MLflow I/O: what a model reference stands for, and what a roll-out tells about a version."""

from llm_operator.ports.registry.cached import CachedRegistry
from llm_operator.ports.registry.connections import read_connection, webhook_secrets
from llm_operator.ports.registry.faults import (
    AliasNotFound,
    ConnectionNotPermitted,
    ConnectionUnknown,
    HostNotAllowed,
    ModelDenied,
    ModelNotFound,
    RegistryDenied,
    RegistryFault,
    RegistryUnreachable,
    VersionNotFound,
)
from llm_operator.ports.registry.mlflow import MlflowRegistry
from llm_operator.ports.registry.nouns import Choices, ModelSummary, Reference, Registry

__all__ = [
    "AliasNotFound",
    "CachedRegistry",
    "Choices",
    "ConnectionNotPermitted",
    "ConnectionUnknown",
    "HostNotAllowed",
    "MlflowRegistry",
    "ModelDenied",
    "ModelNotFound",
    "ModelSummary",
    "Reference",
    "Registry",
    "RegistryDenied",
    "RegistryFault",
    "RegistryUnreachable",
    "VersionNotFound",
    "read_connection",
    "webhook_secrets",
]
