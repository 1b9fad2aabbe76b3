"""Settings in the environment and `.env`: short names, the file's names nested with two
underscores, and which values are secret."""

import ctypes
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from llm_runtime.contract import ENV_FREE_SETTINGS, PORT, RuntimeConfig
from llm_runtime.settings.file import Location

log = logging.getLogger(__name__)

SECRETS = (
    "API_KEY",
    "ADMIN_API_KEY",
    "DATABASE_URL",
    "REDIS_URL",
    "KEY_PEPPER",
    "HUGGINGFACE_TOKEN",
    "DATABASE__URL",
)
PRIVATE = (*SECRETS, "MLFLOW_TRACKING_URI")
"""The model's name and version are not hidden, because clients know them. Nor is MODEL_PATH: in a
pod the operator sets it, and elsewhere a typing error in it must be seen."""
_CREDENTIAL = re.compile(
    "(_TOKEN|_PASSWORD|_SECRET|_SECRET_ACCESS_KEY|_CONNECTION_STRING|_STORAGE_ACCESS_KEY|_HEADERS)$"
)
"""Names of libraries' variables with a secret: HF_TOKEN, MLFLOW_TRACKING_PASSWORD and others."""
MIN_CREDENTIAL = 8
"""Shorter values of these are words, as in HF_HUB_DISABLE_IMPLICIT_TOKEN=true."""
_ACCOUNT = re.compile(r"://([^/@\s]*:[^/@\s]+|[^/@\s]{16,})@")
"""User and password, or a token, in an address such as a proxy's. A short name alone is no secret."""
MIN_PRIVATE = 4
"""Shorter values are not redacted: they would be found in any text."""
MANAGED = frozenset(
    {"DATABASE_URL", "REDIS_URL", "KEY_PEPPER", "MODEL_PATH", "API_HOST", *ENV_FREE_SETTINGS}
)
"""Variables that a pod of the operator takes from its environment, in exactly this spelling. Its
other settings are in its file.

MODEL_PATH is the operator's own, and refused in `pod.env`.
"""
MIN_KEY_CHARACTERS = 16
MIN_KEY_LETTERS = 6
"""Least number of different letters in a key. A random key of 48 hexadecimal digits hardly ever has
fewer."""
SAMPLE_KEYS = ("changeme", "yourapikey", "myapikey", "replaceme")

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Environment(BaseModel):
    """Names that are the environment's only."""

    model_config = ConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)

    api_key: SecretStr | None = None
    """The one key of a server without a key file or a database of keys."""
    admin_api_key: SecretStr | None = None
    """The key that may manage models and keys; none: nobody may."""
    model_name: str | None = None
    """Registered model, and the id that clients send."""
    model_version: str | None = None
    """Version of the registered model; none: the one in stage Production, or else the newest."""
    model_path: str | None = None
    """A local folder instead."""
    mlflow_tracking_uri: str | None = None
    """Address of the MLflow server."""
    api_host: str = "0.0.0.0"
    """Address to listen on."""
    api_port: int = Field(PORT, ge=0, le=65535)
    """Port to listen on."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    debug: bool = False
    """true is LOG_LEVEL=DEBUG."""
    database_url: SecretStr | None = None
    """Where usage and keys are kept, over `database.url`: it holds a password."""
    redis_url: SecretStr | None = None
    """Redis or Valkey for limits per minute that several replicas share;
    needs the extra `redis`."""
    key_pepper: SecretStr | None = None
    """Makes the digests of keys in the database useless to whoever has only the database."""
    huggingface_token: SecretStr | None = None
    """For models that the hub gives to signed-in users only; handed on as HF_TOKEN."""

    @field_validator("api_port", mode="before")
    @classmethod
    def _skip_service_links(cls, value: Any) -> Any:
        # For a Service named `api`, the kubelet sets API_PORT=tcp://10.0.0.1:80 in every pod of its
        # namespace.
        return PORT if isinstance(value, str) and value.startswith("tcp://") else value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in LOG_LEVELS:
            raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
        return value.upper()


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable's name, its value, and where it was set."""

    name: str
    value: str
    source: str
    """`environment` or `.env line 3`."""


def variables(env_file: Path | None) -> dict[str, Variable]:
    """Variables by name. The environment overrides `.env`.
    Case does not matter; empty ones in `.env` are not set."""
    found = {}
    if env_file and env_file.is_file():
        text = env_file.read_text(encoding="utf-8")
        for name, value in dotenv_values(env_file, encoding="utf-8").items():
            if value:
                found[name.upper()] = Variable(
                    name.upper(), value, f"{env_file.name} line {_line(text, name)}"
                )
    for name, value in os.environ.items():
        found[name.upper()] = Variable(name.upper(), value, "environment")
    return found


def managed_variables() -> dict[str, Variable]:
    """The variables that an operator's pod uses.
    Other settings in the environment are logged and ignored."""
    ours = {
        name: Variable(name, os.environ[name], "environment")
        for name in MANAGED & os.environ.keys()
    }
    other = {name.upper(): value for name, value in os.environ.items() if name not in MANAGED}
    others = {name: Variable(name, value, "environment") for name, value in other.items()}
    short = {name.upper() for name in Environment.model_fields} & others.keys()
    if ignored := sorted(short | {variable.name for _, variable in nested(others)}):
        log.warning(
            "The environment sets %s: ignored, as this pod's configuration file decides",
            ", ".join(ignored),
        )
    return ours


def private_values(env_file: Path | None = Path(".env")) -> dict[str, str]:
    """Names of variables by their secret values, which must not appear in logs or reports.
    Libraries' variables count, as their errors quote headers and addresses."""
    found = variables(env_file)
    # Addresses and paths are secret, too.
    # Other settings are words and numbers, which may occur in any line.
    given = {
        variable.value: variable.name for _, variable in nested(found) if "/" in variable.value
    }
    given |= {found[name].value: name for name in PRIVATE if name in found}
    for name, variable in found.items():
        if _CREDENTIAL.search(name) and len(variable.value) >= MIN_CREDENTIAL:
            given.setdefault(variable.value, name)
        for account in _ACCOUNT.findall(variable.value):
            given.setdefault(account, name)
    # A value that was read from a file often ends with a line break, which errors show escaped.
    bare = {value.strip(): name for value, name in given.items()}
    # One may be part of another.
    longest_first = sorted(bare, key=len, reverse=True)
    return {value: bare[value] for value in longest_first if len(value) >= MIN_PRIVATE}


def can_be_guessed(key: str) -> bool:
    """Whether a key is too short, always the same letters, or a sample that was not replaced."""
    letters = re.sub(r"[\W_]", "", key.lower())
    short = len(key) < MIN_KEY_CHARACTERS or len(set(key)) < MIN_KEY_LETTERS
    return short or letters.startswith(SAMPLE_KEYS)


def forget_secrets() -> None:
    """Remove what was read from the environment,
    so that neither /proc/self/environ nor a child process has it."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    for name in [name for name in os.environ if name.upper() in SECRETS]:
        # Overwrite the memory, too: removing the name leaves the value in the process's initial
        # environment.
        if place := libc.getenv(name.encode()):
            ctypes.memset(place, 0, len(os.fsencode(os.environ[name])))
        del os.environ[name]


def nested(set_: Mapping[str, Variable]) -> Iterator[tuple[Location, Variable]]:
    """Variables that set keys of the file, each with the place of its key."""
    for name, variable in set_.items():
        parts = tuple(part.lower() for part in name.split("__"))
        if parts[0] in RuntimeConfig.model_fields and all(parts):
            yield parts, variable


def value_of(location: Location, text: str) -> Any:
    """A variable's text as a value of the file: lists by commas or in brackets;
    lists of objects and sections as JSON.

    The field's type decides, not how the text begins: a chat template begins with a brace, too.
    """
    field = field_at(location)
    if field is not None and field == tuple[str, ...]:
        return _texts(text)
    if text.lstrip()[:1] in ("{", "[") and not _takes_text(field):
        return json.loads(text)
    return text


def _texts(text: str) -> list[str]:
    """Parse a list: as JSON, or separated by commas, with or without brackets."""
    try:
        items = json.loads(text)
    except ValueError:
        items = None
    if isinstance(items, list) and all(isinstance(item, str) for item in items):
        return items
    bare = text.strip().removeprefix("[").removesuffix("]")
    return [item.strip(" \"'") for item in bare.split(",") if item.strip()]


def _takes_text(field: Any) -> bool:
    """Whether a text is already a value of a field of this type."""
    if get_origin(field) is Literal:
        return True
    if isinstance(field, type) and get_origin(field) is None:
        return issubclass(field, str | SecretStr | Path)
    return get_origin(field) is not tuple and any(_takes_text(kind) for kind in get_args(field))


def field_at(location: Location) -> Any:
    """The type of the configuration's field at a place; None if there is no such field."""
    found: Any = RuntimeConfig
    for part in location:
        models = [
            kind
            for kind in (found, *get_args(found))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not models or not isinstance(part, str) or part not in models[0].model_fields:
            return None
        found = models[0].model_fields[part].annotation
    return found


def names(model: type[BaseModel] = RuntimeConfig, prefix: str = "") -> Iterator[str]:
    """Every name that `nested` accepts, as it is spelled in the environment."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}".upper()
        kinds = (field.annotation, *get_args(field.annotation))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from names(kind, f"{prefix}{name}__")


def _line(text: str, name: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*(export\s+)?{re.escape(name)}\s*=", line):
            return number
    return 0
