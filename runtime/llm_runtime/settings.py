"""Where the configuration comes from: a file, over it `.env`, over it the environment.

Names in the environment are the file's, nested with two underscores (`ENGINE__MAX_MODEL_LENGTH=2048`), and a few short
ones for what every stand-alone server sets. Wrong and unknown names end the start: a slip must not be a default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic.alias_generators import to_camel, to_snake
from pydantic_settings import BaseSettings, SettingsConfigDict

from llm_runtime.contract import PORT, RuntimeConfig

LISTS = {("server", "cors_origins"), ("server", "trusted_hosts")}
"""Written with commas in the environment, in brackets or without."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsInvalid(ValueError):
    """The configuration can't be used; the message names every field at fault."""


class Environment(BaseSettings):
    """What the environment and `.env` may say."""

    model_config = SettingsConfigDict(
        env_nested_delimiter="__", env_file_encoding="utf-8", extra="ignore", use_attribute_docstrings=True
    )

    model: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    server: dict[str, Any] = {}
    authentication: str | None = None
    api_key: SecretStr | None = None
    """A key of a server without a key file, beside those in its database."""
    admin_api_key: SecretStr | None = None
    """A key that may also manage models and keys."""
    key_pepper: SecretStr | None = None
    """Makes the digests of the keys in the database useless to whoever has only these. None: a salt in the database."""
    short_model_name: Annotated[str | None, Field(validation_alias=AliasChoices("MODEL_NAME"))] = None
    """Registered model, and the id that clients send."""
    short_model_version: Annotated[str | None, Field(validation_alias=AliasChoices("MODEL_VERSION"))] = None
    """Its version."""
    short_model_path: Annotated[str | None, Field(validation_alias=AliasChoices("MODEL_PATH"))] = None
    """A local folder instead."""
    mlflow_tracking_uri: str | None = None
    """Address of the MLflow server."""
    api_host: str = "0.0.0.0"
    """Address to listen on."""
    api_port: Annotated[int, Field(ge=0, le=65535)] = PORT
    """Port to listen on."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @field_validator("api_port", mode="before")
    @classmethod
    def _skip_service_links(cls, value: Any) -> Any:
        # A Service named `api` makes the kubelet set API_PORT=tcp://10.0.0.1:80 in every pod of its namespace.
        return PORT if isinstance(value, str) and value.startswith("tcp://") else value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in LOG_LEVELS:
            raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
        return value.upper()


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration of a process."""

    config: RuntimeConfig
    api_key: str | None
    host: str
    port: int
    log_level: str
    admin_api_key: str | None = None
    key_pepper: str | None = None
    mlflow_tracking_uri: str | None = None


def load(config_file: Path | None, env_file: Path | None = Path(".env")) -> Settings:
    """Read everything. Raises `SettingsInvalid`."""
    source = f"{config_file} and the environment" if config_file else "environment"
    try:
        environment = Environment(_env_file=env_file)
    except (ValidationError, ValueError) as error:
        raise SettingsInvalid(f"environment: {_explain(error)}") from error
    merged = _merge(_read(config_file) if config_file else {}, _overrides(environment))
    _apply_short_names(merged, environment)
    _check_source(merged, source)
    try:
        config = RuntimeConfig.model_validate(merged)
    except ValidationError as error:
        raise SettingsInvalid(f"{source}: {_explain(error)}") from error
    return Settings(
        config,
        _secret(environment.api_key),
        environment.api_host,
        environment.api_port,
        environment.log_level,
        _secret(environment.admin_api_key),
        _secret(environment.key_pepper),
        environment.mlflow_tracking_uri,
    )


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() or None if value else None


class _DatabaseEnvironment(BaseSettings):
    """The part of the environment that tells where the database is."""

    model_config = SettingsConfigDict(env_nested_delimiter="__", env_file_encoding="utf-8", extra="ignore")

    database: dict[str, Any] = {}
    database_url: str = ""


def database_url(config_file: Path | None, env_file: Path | None = Path(".env")) -> str:
    """The database's address alone, for commands that need no model. "": the default. Raises `SettingsInvalid`."""
    try:
        environment = _DatabaseEnvironment(_env_file=env_file)
    except (ValidationError, ValueError) as error:
        raise SettingsInvalid(f"environment: {_explain(error)}") from error
    section = _read(config_file).get("database") if config_file else None
    below = section.get("url") if isinstance(section, Mapping) else None
    return environment.database_url or str(environment.database.get("url") or below or "")


def _read(file: Path) -> dict[str, Any]:
    """JSON is YAML too. Keys come out in Python's spelling, so that an override meets what it overrides."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsInvalid(f"{file}: can't be read: {error}") from error
    if not isinstance(content, dict):
        raise SettingsInvalid(f"{file}: must hold an object with `model`, `engine`, `server`")
    return _snake(content)


def _snake(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        to_snake(str(name)): _snake(value) if isinstance(value, Mapping) else value for name, value in content.items()
    }


def _overrides(environment: Environment) -> dict[str, Any]:
    sections = {"model": environment.model, "engine": environment.engine, "server": environment.server}
    overrides: dict[str, Any] = {name: dict(section) for name, section in sections.items() if section}
    for section, name in LISTS:
        if isinstance(text := overrides.get(section, {}).get(name), str):
            bare = text.strip().removeprefix("[").removesuffix("]")
            overrides[section][name] = [item.strip(" \"'") for item in bare.split(",") if item.strip()]
    if environment.authentication:
        overrides["authentication"] = environment.authentication
    return overrides


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _apply_short_names(merged: dict[str, Any], environment: Environment) -> None:
    """`MODEL_PATH`, or `MODEL_NAME` with `MODEL_VERSION` and `MLFLOW_TRACKING_URI`, make a whole `model` section."""
    model = merged.setdefault("model", {})
    name, path = environment.short_model_name, environment.short_model_path
    if not isinstance(model, dict):
        return
    if path:
        model["path"] = path
        model.pop("mlflow", None)
    if name or path:
        model["name"] = name or model.get("name") or Path(str(path)).name
    registry = {"version": environment.short_model_version, "tracking_uri": environment.mlflow_tracking_uri}
    given = {key: value for key, value in registry.items() if value}
    if given and not model.get("path") and model.get("name"):
        model["mlflow"] = {"name": model["name"], **(model.get("mlflow") or {}), **given}


def _check_source(merged: dict[str, Any], source: str) -> None:
    model = merged["model"]
    if not isinstance(model, dict) or bool(model.get("mlflow")) == bool(model.get("path")):
        raise SettingsInvalid(
            f"{source}: `model` needs exactly one of `mlflow` and `path`. Stand-alone, set MODEL_PATH, or MODEL_NAME, "
            "MODEL_VERSION and MLFLOW_TRACKING_URI."
        )


def _explain(error: Exception) -> str:
    """Every field at fault, spelled as in the file, with what is wrong; no values, as one may be a secret."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(to_camel(str(part)) for part in found['loc'])}: "
        f"{'unknown key' if found['type'] == 'extra_forbidden' else found['msg'].removeprefix('Value error, ')}"
        for found in error.errors(include_url=False, include_input=False)
    )
