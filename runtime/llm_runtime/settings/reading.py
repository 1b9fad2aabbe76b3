"""Reads the configuration from a file, `.env` and the environment, and names every fault in it.
Later ones override earlier ones.

In an operator's pod the file decides: only secrets,
and what the operator itself sets, come from the environment there.

Names in the environment are the file's, nested with two underscores
(`ENGINE__MAX_MODEL_LENGTH=2048`), and a few short ones for what every stand-alone server sets.
Wrong and unknown names end the start, all of them in one message: a slip must not be a default.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.alias_generators import to_camel, to_snake

from llm_runtime.contract import RuntimeConfig
from llm_runtime.settings import renamed
from llm_runtime.settings.environment import (
    MIN_KEY_CHARACTERS,
    MIN_KEY_LETTERS,
    Environment,
    Variable,
    can_be_guessed,
    field_at,
    managed_variables,
    names,
    nested,
    value_of,
    variables,
)
from llm_runtime.settings.file import Document, FileInvalid, Location, put, read


class SettingsInvalid(ValueError):
    """The configuration is invalid. The message names every faulty field and where it is set."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The complete configuration of a process. `config` has no secrets, so it may be shown."""

    config: RuntimeConfig
    environment: Environment

    @property
    def host(self) -> str:
        return self.environment.api_host

    @property
    def port(self) -> int:
        return self.environment.api_port

    @property
    def log_level(self) -> str:
        return "DEBUG" if self.environment.debug else self.environment.log_level

    @property
    def api_key(self) -> str | None:
        return _secret(self.environment.api_key)

    @property
    def admin_key(self) -> str | None:
        return _secret(self.environment.admin_api_key)

    @property
    def storage(self) -> "Storage":
        return _storage(self.environment, self.config.database.url)

    @property
    def redis_url(self) -> str | None:
        return _secret(self.environment.redis_url)


@dataclass(frozen=True, slots=True)
class Storage:
    """Address of the database, and what is needed to read its keys."""

    url: str
    """The address in the environment, else that in the file; "" means the default."""
    key_pepper: str | None


def load(
    config_file: Path | None, env_file: Path | None = Path(".env"), *, managed: bool = False
) -> Settings:
    """Read all settings. `managed`: an operator runs this process, and its file decides.
    Raises `SettingsInvalid`."""
    try:
        document = read(config_file) if config_file else Document()
    except FileInvalid as error:
        raise SettingsInvalid(str(error)) from error
    found = managed_variables() if managed else variables(env_file)
    return _Reading(config_file, document, found).settings()


def storage(config_file: Path | None, env_file: Path | None = Path(".env")) -> Storage:
    """The settings for commands that need only the database, not a model.
    Raises `SettingsInvalid`."""
    try:
        section = (read(config_file).content if config_file else {}).get("database")
    except FileInvalid as error:
        raise SettingsInvalid(str(error)) from error
    found = variables(env_file)
    environment = Environment.model_validate(
        {
            name: found[name.upper()].value
            for name in ("database_url", "key_pepper")
            if name.upper() in found
        }
    )
    nested_url = found.get("DATABASE__URL")
    below = section.get("url") if isinstance(section, dict) else None
    return _storage(environment, nested_url.value if nested_url else str(below or ""))


def _storage(environment: Environment, configured: str) -> Storage:
    return Storage(_secret(environment.database_url) or configured, _secret(environment.key_pepper))


SOURCES = ("mlflow", "path", "uri")


class _Reading:
    """One attempt to build settings from what was read. Collects all faults before it fails."""

    def __init__(self, file: Path | None, document: Document, set_: Mapping[str, Variable]) -> None:
        self._file = file
        self._document = document
        self._variables = set_
        self._content: dict[str, Any] = _copy(document.content)
        self._overrides: dict[Location, Variable] = {}
        self._faults: list[str] = []

    def settings(self) -> Settings:
        self._refuse_repeated()
        self._refuse_renamed()
        environment = self._environment()
        self._override()
        self._apply_short_names(environment)
        self._check_source()
        config = self._config()
        if self._faults or config is None:
            raise SettingsInvalid("; ".join(self._faults))
        return Settings(config, environment)

    def _refuse_repeated(self) -> None:
        for place in sorted(self._document.repeated, key=str):
            self._fault(place, "stands there twice")

    def _refuse_renamed(self) -> None:
        before = len(self._faults)
        for place in list(self._document.lines):
            path = tuple(map(str, place))
            if (
                len(path) > 1
                and (name := renamed.now_called(path))
                and _remove(self._content, place)
            ):
                self._fault(place, f"is now {name}")
        if len(self._faults) > before:
            self._faults.append(
                f"`llm-runtime settings convert {self._file}` rewrites the whole file"
            )
        for section in renamed.FOREIGN & self._content.keys():
            if not self._content[section]:
                del self._content[section]
        for variable in self._variables.values():
            path = tuple(variable.name.lower().split("__"))
            name = renamed.VARIABLES.get(variable.name) or (
                renamed.now_called(path) if len(path) > 1 else None
            )
            if name and renamed.HARMLESS.get(variable.name) != variable.value:
                self._faults.append(f"{variable.source}: {variable.name} is now {name}")

    def _environment(self) -> Environment:
        given = {name: self._variables.get(name.upper()) for name in Environment.model_fields}
        values = {
            name: variable.value for name, variable in given.items() if variable and variable.value
        }
        for name in ("api_key", "admin_api_key"):
            if (key := given[name]) and key.value and can_be_guessed(key.value):
                self._faults.append(
                    f"{key.source}: {key.name}: must have at least {MIN_KEY_CHARACTERS} characters,"
                    f" {MIN_KEY_LETTERS} of them different, and be no sample; `openssl rand -hex 24` makes one"
                )
        try:
            return Environment.model_validate(values)
        except ValidationError as error:
            for found in error.errors(include_url=False, include_input=False):
                name = str(found["loc"][0])
                variable = self._variables[name.upper()]
                self._faults.append(f"{variable.source}: {variable.name}: {_said(found['msg'])}")
                del values[name]
            # Keep checking the other fields: a bad port, say, does not hide faults of the model.
            return Environment.model_validate(values)

    def _override(self) -> None:
        for place, variable in nested(self._variables):
            if renamed.now_called(tuple(map(str, place))):
                continue
            if field_at(place) is None:
                hint = _near(variable.name, names())
                self._faults.append(f"{variable.source}: {variable.name}: unknown name{hint}")
                continue
            try:
                value = value_of(place, variable.value)
            except ValueError as error:
                self._faults.append(f"{variable.source}: {variable.name}: not JSON: {error}")
                continue
            self._overrides[place] = variable
            put(self._content, place, value)

    def _apply_short_names(self, environment: Environment) -> None:
        """`MODEL_PATH`, or `MODEL_NAME` and `MLFLOW_TRACKING_URI` with or without `MODEL_VERSION`,
        make a `model`."""
        model = self._content.setdefault("model", {})
        name = environment.model_name
        path = environment.model_path
        if not isinstance(model, dict):
            return
        if path:
            model["path"] = path
            model.pop("mlflow", None)
            model.pop("uri", None)
        if name or path:
            model["name"] = name or model.get("name") or Path(str(path)).name
        registry = {
            "version": environment.model_version,
            "tracking_uri": environment.mlflow_tracking_uri,
        }
        given = {key: value for key, value in registry.items() if value}
        if model.get("uri") and not environment.model_version:
            if environment.mlflow_tracking_uri and not model.get("tracking_uri"):
                model["tracking_uri"] = environment.mlflow_tracking_uri
        elif (
            environment.mlflow_tracking_uri
            and name
            and not environment.model_version
            and not _names_source(model)
        ):
            model |= {
                "uri": f"models:/{name}/Production|latest",
                "tracking_uri": environment.mlflow_tracking_uri,
            }
        elif given and not model.get("path") and model.get("name"):
            model["mlflow"] = {"name": model["name"], **(model.get("mlflow") or {}), **given}

    def _check_source(self) -> None:
        model = self._content["model"]
        if not isinstance(model, dict) or sum(map(bool, map(model.get, SOURCES))) != 1:
            text = (
                "needs exactly one of `mlflow`, `path` and `uri`. Stand-alone, set MODEL_PATH, or"
                " MODEL_NAME and MLFLOW_TRACKING_URI, with MODEL_VERSION or for the version in"
                " Production"
            )
            self._fault(("model",), text)

    def _config(self) -> RuntimeConfig | None:
        try:
            return RuntimeConfig.model_validate(self._content)
        except ValidationError as error:
            for found in error.errors(include_url=False, include_input=False):
                place = tuple(
                    to_snake(part) if isinstance(part, str) else part for part in found["loc"]
                )
                unknown = found["type"] == "extra_forbidden"
                text = (
                    f"unknown key{_near(to_camel(str(place[-1])), _siblings(place))}"
                    if unknown
                    else found["msg"]
                )
                self._fault(place, _said(text))
            return None

    def _fault(self, place: Location, text: str) -> None:
        """Record a fault at a place, spelled as in the file.
        Never quotes the value, which may be a secret."""
        for length in range(len(place), 0, -1):
            if variable := self._overrides.get(place[:length]):
                self._faults.append(f"{variable.source}: {variable.name}: {text}")
                return
        line = self._document.line(place)
        where = (
            "the environment"
            if self._file is None
            else f"{self._file} line {line}"
            if line
            else str(self._file)
        )
        key = ".".join(str(part) if isinstance(part, int) else to_camel(part) for part in place)
        self._faults.append(f"{where}: {key or 'configuration'}: {text}")


def _names_source(model: Mapping[str, Any]) -> bool:
    return any(map(model.get, SOURCES))


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() or None if value else None


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


def _near(name: str, known: Iterator[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _siblings(place: Location) -> Iterator[str]:
    """Valid keys in the place of an unknown one, spelled as in the file."""
    around = (
        field_at(tuple(part for part in place[:-1] if isinstance(part, str)))
        if place[:-1]
        else RuntimeConfig
    )
    for kind in (around, *getattr(around, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from map(to_camel, kind.model_fields)


def _copy(value: Any) -> Any:
    return (
        {name: _copy(inner) for name, inner in value.items()} if isinstance(value, dict) else value
    )


def _remove(content: dict[str, Any], place: Location) -> bool:
    for part in place[:-1]:
        inner = content.get(str(part))
        if not isinstance(inner, dict):
            return False
        content = inner
    return content.pop(str(place[-1]), None) is not None
