"""The runtime's configuration file."""

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


def runtime_config(
    name: str,
    spec: LLMDeploymentSpec,
    model: ModelVersion,
    connection: Connection | None,
    anew: str = "",
) -> RuntimeConfig:
    """The file that the pods of one revision read.
    `connection`: of a model in MLflow; `anew` marks a number that was registered anew."""
    cache = spec.model_cache
    # An older runtime does not know the field,
    # and in a pod's own volume there is no earlier version.
    kept = cache is not None and cache.persistent_volume_claim is not None
    return RuntimeConfig(
        model=_model(name, spec.model, model, connection, (anew or None) if kept else None),
        engine=_section(
            EngineConfig,
            spec.engine,
            task=spec.task,
            kv_cache_bytes=_bytes(spec.engine.kv_cache_memory),
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
