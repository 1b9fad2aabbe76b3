"""All MLflow I/O: what a model reference stands for. Plain REST, five GETs (MLflow 2.9 to 3.18).

RegistryFault
├── ModelNotFound       404: no registered model of this name
├── AliasNotFound       400 INVALID_PARAMETER_VALUE: MLflow's answer to an unknown alias
├── VersionNotFound     404 on a version, or no version in the stage
├── RegistryDenied      401, 403
├── HostNotAllowed      403 in plain text: MLflow's own Host header check
├── ConnectionUnknown   no such connection in the operator's configuration
└── RegistryUnreachable everything else: refused, timeout, 5xx, an answer that makes no sense
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

import httpx

from llm_operator import metrics
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Connection, Fault, ModelVersion

API = "/api/2.0/mlflow"


class RegistryFault(Exception):
    """The registry gave no version. `terminal`: asking again will not help."""

    terminal: ClassVar[bool] = True
    about_server: ClassVar[bool] = False
    """Whether every question to this server would fail like this."""

    @property
    def fault(self) -> Fault:
        return Fault(type(self).__name__, str(self), self.terminal)


class ModelNotFound(RegistryFault):
    """No registered model of this name."""


class AliasNotFound(RegistryFault):
    """The model has no such alias."""


class VersionNotFound(RegistryFault):
    """The model has no such version."""


class RegistryDenied(RegistryFault):
    """The server refused the operator's credentials."""

    about_server = True


class HostNotAllowed(RegistryFault):
    """The server refuses the Host header."""

    about_server = True


class ConnectionUnknown(RegistryFault):
    """The operator's configuration has no such connection."""


class RegistryUnreachable(RegistryFault):
    """No sensible answer."""

    terminal, about_server = False, True


@dataclass(frozen=True)
class Reference:
    """What the specification asks for: exactly one of alias, version, stage."""

    name: str
    alias: str | None = None
    version: str | None = None
    stage: str | None = None
    field: str = field(default="spec.model.mlflow", compare=False)
    """Where it is written, for messages."""

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version or self.stage}"


@dataclass(frozen=True)
class ModelSummary:
    """The moving parts of one registered model: alias → version and stage → newest version."""

    aliases: dict[str, str]
    stages: dict[str, str]


class Registry(Protocol):
    """What the operator asks MLflow."""

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        """The version that the reference stands for now. Raises RegistryFault."""

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        """All registered models of one server, by name. Raises RegistryFault."""


def read_connection(name: str, known: dict[str, ConnectionSettings], field: str = "spec.model.mlflow") -> Connection:
    """The connection with its credentials as the mounted files hold them now. Raises ConnectionUnknown."""
    settings = known.get(name)
    if settings is None:
        have = ", ".join(sorted(known)) or "none"
        raise ConnectionUnknown(
            f"the operator has no connection {name!r} (it has: {have}): add it under `connections` in the operator's "
            f"configuration, or write another {field}.connection"
        )

    def secret(file: str) -> str:
        path = settings.credentials_folder / file if settings.credentials_folder else None
        return path.read_text().strip() if path and path.is_file() else ""

    return Connection(
        name=name,
        tracking_uri=settings.tracking_uri.rstrip("/"),
        workspace=settings.workspace,
        username=secret("username"),
        password=secret("password"),
        token=secret("token"),
        ca=settings.ca_file.read_text() if settings.ca_file and settings.ca_file.is_file() else "",
    )


class MlflowRegistry:
    """MLflow's REST API. One HTTP client per connection, made anew when its address or CA changes."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, timeout_seconds: float = 10.0) -> None:
        self._transport, self._timeout = transport, timeout_seconds
        self._clients: dict[tuple[str, str], httpx.AsyncClient] = {}

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        if reference.alias:
            query = {"name": reference.name, "alias": reference.alias}
            found = (await self._call(connection, reference, "GET", "registered-models/alias", query))["model_version"]
        elif reference.stage:
            found = await self._newest_in_stage(connection, reference)
        else:
            found = await self._version(connection, reference, str(reference.version))
        query = {"name": reference.name, "version": str(found["version"])}
        where = await self._call(connection, reference, "GET", "model-versions/get-download-uri", query)
        return ModelVersion(
            reference.name, str(found["version"]), str(where.get("artifact_uri", "")), str(found.get("run_id") or "")
        )

    async def _version(self, connection: Connection, reference: Reference, version: str) -> dict[str, Any]:
        query = {"name": reference.name, "version": version}
        answer = await self._call(connection, reference, "GET", "model-versions/get", query)
        return dict(answer["model_version"])

    async def _newest_in_stage(self, connection: Connection, reference: Reference) -> dict[str, Any]:
        body = {"name": reference.name, "stages": [reference.stage]}
        answer = await self._call(connection, reference, "POST", "registered-models/get-latest-versions", body)
        versions = answer.get("model_versions", [])
        if not versions:
            raise VersionNotFound(
                f"no version of {reference.name} is in stage {reference.stage} on {connection.tracking_uri}: move one "
                "there, or prefer an alias (stages are deprecated in MLflow)"
            )
        return max(versions, key=lambda version: int(version["version"]))

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        found: dict[str, ModelSummary] = {}
        token = ""
        while True:
            query = {"max_results": "1000"} | ({"page_token": token} if token else {})
            answer = await self._call(connection, None, "GET", "registered-models/search", query)
            for model in answer.get("registered_models", []):
                found[model["name"]] = _summary(model)
            token = answer.get("next_page_token") or ""
            if not token:
                return found

    async def _call(
        self, connection: Connection, reference: Reference | None, method: str, path: str, query: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            answer = await self._request(connection, method, path, query)
        except (httpx.HTTPError, ssl.SSLError, OSError) as error:
            metrics.REGISTRY_CALLS.labels(connection.name, "unreachable").inc()
            raise RegistryUnreachable(
                f"MLflow at {connection.tracking_uri} does not answer ({type(error).__name__}: {error}); what serves "
                f"keeps serving, asking again by itself: curl {connection.tracking_uri}/health"
            ) from error
        metrics.REGISTRY_CALLS.labels(connection.name, str(answer.status_code)).inc()
        if answer.status_code != 200:
            raise _explain(answer, connection, reference)
        try:
            return dict(answer.json())
        except ValueError as error:
            raise RegistryUnreachable(
                f"{connection.tracking_uri} answered something that is not MLflow's JSON: is the tracking URI right? "
                f"It began with {answer.text[:60]!r}"
            ) from error

    async def _request(self, connection: Connection, method: str, path: str, query: dict[str, Any]) -> httpx.Response:
        headers = {"X-MLFLOW-WORKSPACE": connection.workspace} if connection.workspace else {}
        if connection.token:
            headers["Authorization"] = f"Bearer {connection.token}"
        auth = httpx.BasicAuth(connection.username, connection.password) if connection.username else None
        return await self._client(connection).request(
            method,
            f"{connection.tracking_uri}{API}/{path}",
            params=query if method == "GET" else None,
            json=query if method != "GET" else None,
            headers=headers,
            auth=auth,
        )

    def _client(self, connection: Connection) -> httpx.AsyncClient:
        identity = (connection.tracking_uri, connection.ca)
        if identity not in self._clients:
            verify: ssl.SSLContext | bool = ssl.create_default_context(cadata=connection.ca) if connection.ca else True
            self._clients[identity] = httpx.AsyncClient(
                transport=self._transport, timeout=self._timeout, verify=verify, trust_env=False
            )
        return self._clients[identity]


def _summary(model: dict[str, Any]) -> ModelSummary:
    stages: dict[str, str] = {}
    for version in model.get("latest_versions") or []:
        stages[version.get("current_stage", "None")] = str(version["version"])
    return ModelSummary({a["alias"]: str(a["version"]) for a in model.get("aliases") or []}, stages)


def _explain(answer: httpx.Response, connection: Connection, reference: Reference | None) -> RegistryFault:
    uri, status = connection.tracking_uri, answer.status_code
    try:
        body = answer.json()
    except ValueError:
        body = {}
    code, said = (body.get("error_code", ""), body.get("message", "")) if isinstance(body, dict) else ("", "")
    if status == 403 and "host header" in answer.text.lower():
        host = urlsplit(uri).netloc
        return HostNotAllowed(
            f"MLflow at {uri} refuses the Host header {host!r}: start it with --allowed-hosts '{host}' "
            "(MLFLOW_SERVER_ALLOWED_HOSTS)"
        )
    if status in (401, 403):
        return RegistryDenied(
            f"MLflow at {uri} answered {status} to the operator: check username and password (or token) in the Secret "
            f"behind connection {connection.name!r}"
        )
    if reference is None or status >= 500 or code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return RegistryUnreachable(f"MLflow at {uri} answered {status}: {said or answer.text[:200]}")
    return _not_found(reference, uri, said)


def _not_found(reference: Reference, uri: str, said: str) -> RegistryFault:
    if "registered model with name" in said.lower() and "alias" not in said.lower():
        return ModelNotFound(
            f"MLflow at {uri} has no registered model {reference.name!r}: register it, or correct "
            f"{reference.field}.name"
        )
    if reference.alias and "alias" in said.lower():
        return AliasNotFound(
            f"model {reference.name!r} on {uri} has no alias {reference.alias!r}: set it "
            f"(MlflowClient().set_registered_model_alias({reference.name!r}, {reference.alias!r}, VERSION)), "
            f"or correct {reference.field}.alias"
        )
    return VersionNotFound(
        f"MLflow at {uri} has no {reference}: correct {reference.field} (MLflow said: {said or 'nothing'})"
    )


class CachedRegistry:
    """Asks once per reference and interval, and leaves a server that does not answer alone for a while.

    Without it a dead server would hold every worker for a time-out per LLMDeployment.
    """

    def __init__(
        self, inner: Registry, keep_seconds: float, rest_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner, self._keep, self._rest, self._clock = inner, keep_seconds, rest_seconds, clock
        self._versions: dict[tuple[Connection, Reference], tuple[float, ModelVersion]] = {}
        self._down: dict[Connection, tuple[float, RegistryFault]] = {}
        self._asking: dict[Connection, asyncio.Lock] = {}

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        until, version = self._versions.get((connection, reference), (0.0, None))
        if version is not None and self._clock() < until:
            return version
        # Only a server that is in doubt is asked one question at a time.
        doubtful = connection in self._down
        if doubtful:
            async with self._asking.setdefault(connection, asyncio.Lock()):
                self._raise_if_down(connection)
                return await self._ask(connection, reference)
        return await self._ask(connection, reference)

    def _raise_if_down(self, connection: Connection) -> None:
        until, fault = self._down.get(connection, (0.0, None))
        if fault is not None and self._clock() < until:
            raise fault

    async def _ask(self, connection: Connection, reference: Reference) -> ModelVersion:
        try:
            version = await self._inner.resolve(connection, reference)
        except RegistryFault as fault:
            if fault.about_server:
                self._down[connection] = (self._clock() + self._rest, fault)
            raise
        self._down.pop(connection, None)
        self._versions[connection, reference] = (self._clock() + self._keep, version)
        return version

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        try:
            found = await self._inner.summary(connection)
        except RegistryFault as fault:
            if fault.about_server:
                self._down[connection] = (self._clock() + self._rest, fault)
            raise
        self._down.pop(connection, None)
        return found

    def forget(self, connection: Connection, name: str) -> None:
        """Ask again about this model: the poll saw it move."""
        for known in [k for k in self._versions if k[0] == connection and k[1].name == name]:
            del self._versions[known]
