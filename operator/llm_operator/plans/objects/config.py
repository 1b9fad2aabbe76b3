"""The runtime's configuration file, and the id of a revision."""

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.common import quantity_value
from llm_operator.crds.model import ModelSpec
from llm_operator.crds.schema import Section
from llm_operator.crds.server import ServerSpec
from llm_operator.state import Connection, ModelVersion
from llm_runtime.contract import (
    CompletionCacheConfig,
    DatabaseConfig,
    EngineConfig,
    FilterPattern,
    FiltersConfig,
    MlflowVersion,
    ModelConfig,
    RuntimeConfig,
    ServerConfig,
    SessionsConfig,
)

Made = TypeVar("Made", bound=BaseModel)

REVISION_FIELDS = {
    "model": {
        "mlflow": {"name", "connection", "sub_path"},
        "uri": True,
        "credentials_secret_ref": True,
        "system_prompt": True,
        "chat_template": True,
    },
    "image": True,
    "engine": True,
    "server": True,
    "access": {"authentication"},
    "database": True,
    "resources": True,
    "model_cache": True,
    "pod": True,
    "rollout": {"drain_seconds"},
}
"""What shapes the pods. Replicas, autoscaling, the Service and the rest of the rollout change
without new pods; so do the tiers, which travel in the key file.
"""


def revision_id(
    spec: LLMDeploymentSpec, model: ModelVersion, anew: str = "", *, adapters: bool = False
) -> str:
    """Ten hexadecimal digits over the user's inputs and the resolved version.

    Fields at their defaults are left out, so that a newer operator with more fields computes the
    same id and restarts no pod. `anew` marks a number that was registered anew. `adapters`: whether
    the pods have a container that fetches some; which ones is no part of a revision.
    """
    inputs = spec.model_dump(mode="json", include=REVISION_FIELDS, exclude_defaults=True)  # type: ignore[arg-type]
    # A revision is one version, whichever of alias, stage or number led to it.
    version = (
        {"version": model.version}
        | ({"anew": anew} if anew else {})
        | ({"adapters": True} if adapters else {})
    )
    canonical = json.dumps({**version, **_pruned(inputs)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _pruned(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs without empty sections, because an empty section shapes no pod."""
    kept = {
        name: _pruned(value) if isinstance(value, dict) else value for name, value in inputs.items()
    }
    return {name: value for name, value in kept.items() if value != {}}


def runtime_config(
    name: str,
    spec: LLMDeploymentSpec,
    model: ModelVersion,
    connection: Connection | None,
    anew: str = "",
) -> RuntimeConfig:
    """The file that the pods of one revision read.
    `connection`: of a model in MLflow; `anew` as in `revision_id`."""
    cache = spec.model_cache
    # An older runtime does not know the field,
    # and in a pod's own volume there is no earlier version.
    kept = cache is not None and cache.persistent_volume_claim is not None
    return RuntimeConfig(
        model=_model(name, spec.model, model, connection, (anew or None) if kept else None),
        engine=_section(
            EngineConfig, spec.engine, kv_cache_bytes=_bytes(spec.engine.kv_cache_memory)
        ),
        server=_server(spec.server, spec.rollout.drain_seconds),
        authentication=spec.access.authentication,
        # The address is a secret: it comes through the environment.
        database=_section(DatabaseConfig, spec.database),
        model_cache_bytes=_bytes(cache.max_size) if cache else None,
    )


def _model(
    name: str, spec: ModelSpec, model: ModelVersion, connection: Connection | None, anew: str | None
) -> ModelConfig:
    texts = {"system_prompt": spec.system_prompt, "chat_template": spec.chat_template}
    if spec.mlflow is not None and connection is not None:
        mlflow = MlflowVersion(
            tracking_uri=connection.tracking_uri,
            name=model.name,
            version=model.version,
            sub_path=spec.mlflow.sub_path,
            anew=anew,
        )
        return ModelConfig(name=name, mlflow=mlflow, **texts)
    return ModelConfig(name=name, uri=spec.uri, **texts)


def _server(spec: ServerSpec, drain_seconds: int) -> ServerConfig:
    own = tuple(
        FilterPattern(name=pattern.name, regex=pattern.regex)
        for pattern in spec.filters.patterns or ()
    )
    return _section(
        ServerConfig,
        spec,
        max_request_bytes=_bytes(spec.max_request_bytes),
        filters=_section(FiltersConfig, spec.filters, patterns=own),
        completion_cache=_section(CompletionCacheConfig, spec.completion_cache),
        sessions=_section(SessionsConfig, spec.sessions),
        drain_seconds=drain_seconds,
    )


def _section(made: type[Made], spec: Section, **own: Any) -> Made:
    """A section of the configuration. It has each field that `spec` sets under the same name, and
    `own` beside them."""
    same = {
        name: value
        for name in made.model_fields
        if (value := getattr(spec, name, None)) is not None
    }
    return made(**{**same, **own})


def _bytes(quantity: str | None) -> int | None:
    return int(quantity_value(quantity)) if quantity else None


def config_text(config: RuntimeConfig) -> str:
    """The file's content."""
    return config.model_dump_json(by_alias=True, exclude_none=True, indent=2)
