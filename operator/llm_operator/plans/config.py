"""The runtime's configuration file, and the id of a revision."""

import hashlib
import json
from typing import Any

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.common import quantity_value
from llm_operator.crds.model import ModelSpec
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
"""What shapes the pods. Replicas, autoscaling, the Service and the rest of the rollout change without new pods; so do
the tiers, which travel in the key file.
"""


def revision_id(spec: LLMDeploymentSpec, model: ModelVersion, anew: str = "", *, adapters: bool = False) -> str:
    """Ten hexadecimal digits over the user's inputs and the resolved version.

    Fields at their defaults are left out, so that a newer operator with more fields computes the same id and restarts
    no pod. `anew` marks a number that was registered anew. `adapters`: whether the pods have a container that fetches
    some; which ones is no part of a revision.
    """
    inputs = spec.model_dump(mode="json", include=REVISION_FIELDS, exclude_defaults=True)  # type: ignore[arg-type]
    # A revision is one version, whichever of alias, stage or number led to it.
    version = {"version": model.version} | ({"anew": anew} if anew else {}) | ({"adapters": True} if adapters else {})
    canonical = json.dumps({**version, **_pruned(inputs)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def _pruned(inputs: dict[str, Any]) -> dict[str, Any]:
    """Without sections of which nothing is left: whether they were written at all shapes no pod."""
    kept = {name: _pruned(value) if isinstance(value, dict) else value for name, value in inputs.items()}
    return {name: value for name, value in kept.items() if value != {}}


def runtime_config(
    name: str, spec: LLMDeploymentSpec, model: ModelVersion, connection: Connection | None, anew: str = ""
) -> RuntimeConfig:
    """The file that the pods of one revision read. `connection`: of a model in MLflow; `anew` as in `revision_id`."""
    cache = spec.model_cache
    # An older runtime does not know the field, and in a pod's own volume there is no earlier version.
    kept = cache is not None and cache.persistent_volume_claim is not None
    return RuntimeConfig(
        model=_model(name, spec.model, model, connection, (anew or None) if kept else None),
        engine=EngineConfig(
            device=spec.engine.device,
            dtype=spec.engine.dtype,
            max_model_length=spec.engine.max_model_length,
            max_batch_size=spec.engine.max_batch_size,
            max_batch_tokens=spec.engine.max_batch_tokens,
            kv_cache_bytes=int(quantity_value(spec.engine.kv_cache_memory)) if spec.engine.kv_cache_memory else None,
            prefix_caching=spec.engine.prefix_caching,
            quantization=spec.engine.quantization,
        ),
        server=_server(spec.server, spec.rollout.drain_seconds),
        authentication=spec.access.authentication,
        # The address is a secret: it comes through the environment.
        database=DatabaseConfig(retention_days=spec.database.retention_days, store_prompts=spec.database.store_prompts),
        model_cache_bytes=int(quantity_value(cache.max_size)) if cache and cache.max_size else None,
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
    filters, cache, sessions = spec.filters, spec.completion_cache, spec.sessions
    own = tuple(FilterPattern(name=pattern.name, regex=pattern.regex) for pattern in filters.patterns or ())
    return ServerConfig(
        max_request_bytes=int(quantity_value(spec.max_request_bytes)),
        max_prompt_characters=spec.max_prompt_characters,
        request_timeout_seconds=spec.request_timeout_seconds,
        body_timeout_seconds=spec.body_timeout_seconds,
        keep_alive_seconds=spec.keep_alive_seconds,
        slot_timeout_seconds=spec.slot_timeout_seconds,
        filters=FiltersConfig(
            pii=filters.pii,
            output=filters.output,
            patterns=own,
        ),
        completion_cache=CompletionCacheConfig(
            enabled=cache.enabled, entries=cache.entries, ttl_seconds=cache.ttl_seconds, database=cache.database
        ),
        sessions=SessionsConfig(enabled=sessions.enabled, ttl_seconds=sessions.ttl_seconds),
        trusted_proxies=ServerConfig().trusted_proxies if spec.trusted_proxies is None else spec.trusted_proxies,
        cors_origins=spec.cors_origins or (),
        trusted_hosts=spec.trusted_hosts or (),
        log_format=spec.log_format,
        drain_seconds=drain_seconds,
    )


def config_text(config: RuntimeConfig) -> str:
    """The file's content."""
    return config.model_dump_json(by_alias=True, exclude_none=True, indent=2)
