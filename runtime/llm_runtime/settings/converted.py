"""A configuration file with the names of other servers,
rewritten with the names that are used here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from llm_runtime.contract import RuntimeConfig
from llm_runtime.settings.file import FileInvalid, put, read
from llm_runtime.settings.renamed import now_called

TIER = "standard"

_MOVED = {
    "model.device": "engine.device",
    "model.max_tokens": "engine.max_model_length",
    "model.batch_size": "engine.max_batch_size",
    "security.max_prompt_chars": "server.max_prompt_characters",
    "cache.enabled": "server.completion_cache.enabled",
    "cache.size": "server.completion_cache.entries",
    "cache.ttl_seconds": "server.completion_cache.ttl_seconds",
    "chat_history.enabled": "server.sessions.enabled",
    "chat_history.ttl_seconds": "server.sessions.ttl_seconds",
    "logging.format": "server.log_format",
    "logging.file": "server.log_file",
}
_TO_ENVIRONMENT = {
    "app.host": "API_HOST",
    "app.port": "API_PORT",
    "app.debug": "DEBUG",
    "api.host": "API_HOST",
    "api.port": "API_PORT",
    "logging.level": "LOG_LEVEL",
}
_MODEL = frozenset({
    "model.name", "model.source", "model.stage",
    "mlflow.tracking_uri", "mlflow.model_name", "mlflow.model_version", "mlflow.model_stage",
})  # fmt: skip
_RATE = frozenset({"rate_limit.enabled", "rate_limit.requests_per_minute"})


@dataclass(slots=True)
class Converted:
    """The new file's content, what belongs into the environment instead,
    and what was left out, with the reason."""

    content: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables to set. The value of a secret is left out."""
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The new file, with the rest as comments above it."""
        lines = [*(f"# {note}" for note in self.notes)]
        if self.environment:
            lines += [
                "# Set in the environment:",
                *(f"#   {name}={value}" for name, value in self.environment.items()),
            ]
        body = yaml.safe_dump(_camel(self.content), sort_keys=False, allow_unicode=True)
        return "\n".join([*lines, body])


def convert(file: Path) -> Converted:
    """Rewrite `file`. Raises `FileInvalid`, also if a value can't be used under its new name."""
    old = dict(_leaves(read(file).content))
    new = Converted()
    _model(old, new)
    _rate(old, new)
    for name, value in old.items():
        if name in _MODEL | _RATE:
            continue
        if name in _MOVED:
            _put(new, _MOVED[name], value)
        elif name in _TO_ENVIRONMENT:
            new.environment[_TO_ENVIRONMENT[name]] = str(value)
        elif name == "security.api_key":
            new.environment["API_KEY"] = "…    (the key that stands in the old file)"
        elif now := now_called(tuple(name.split("."))):
            new.notes.append(f"{name} is left out: {now}")
        else:
            _put(new, name, value)
    _check(file, new)
    return new


def _model(old: Mapping[str, Any], new: Converted) -> None:
    """Join the parts of the model's address, which other servers have as separate settings."""
    name = old.get("model.name") or old.get("mlflow.model_name")
    source = str(old.get("model.source") or "").lower()
    server = old.get("mlflow.tracking_uri")
    if name:
        _put(new, "model.name", name)
    if source and not name:
        new.notes.append(
            "model.name is missing: write model.name, and model.path or model.uri, below"
        )
    elif source in ("hub", "hf", "huggingface"):
        _put(new, "model.uri", f"hf://{name}")
    elif source in ("local", "path", "file", "folder"):
        _put(new, "model.path", name)
    elif server or source in ("mlflow", "registry"):
        registered = old.get("mlflow.model_name") or name
        stage = old.get("mlflow.model_stage") or old.get("model.stage") or "Production|latest"
        _put(new, "model.uri", f"models:/{registered}/{old.get('mlflow.model_version') or stage}")
        if server:
            _put(new, "model.tracking_uri", server)
        else:
            new.environment["MLFLOW_TRACKING_URI"] = "http://…    (the MLflow server)"
    elif source:
        new.notes.append(
            f"model.source {source!r} is not known: write model.path or model.uri below"
        )


def _rate(old: Mapping[str, Any], new: Converted) -> None:
    limit = old.get("rate_limit.requests_per_minute")
    if limit is not None and old.get("rate_limit.enabled", True):
        new.content["tiers"] = [{"name": TIER, "requests_per_minute": limit}]


def _check(file: Path, new: Converted) -> None:
    if "model" not in new.content:
        new.notes.append(
            "No model is named: set MODEL_PATH, or MODEL_NAME and MLFLOW_TRACKING_URI, in the environment"
        )
    named = {**new.content, "model": {"name": "m", **new.content.get("model", {})}}
    try:
        RuntimeConfig.model_validate(named)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        faults = "; ".join(
            f"{'.'.join(to_camel(str(part)) for part in each['loc'])}: {each['msg']}"
            for each in found
        )
        raise FileInvalid(f"{file}: can't be used under its new names: {faults}") from error


def _put(new: Converted, name: str, value: Any) -> None:
    put(new.content, tuple(name.split(".")), value)


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {to_camel(name): _camel(inner) for name, inner in value.items()}
    return [_camel(item) for item in value] if isinstance(value, list) else value
