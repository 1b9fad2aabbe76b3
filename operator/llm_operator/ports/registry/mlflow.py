"""MLflow as the registry: plain REST, MLflow 2.9 to 3.18."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from llm_operator import metrics
from llm_operator.ports.proxies import proxy_for, without_password
from llm_operator.ports.registry.connections import auth_of, headers_of, tls_of
from llm_operator.ports.registry.faults import RegistryUnreachable, VersionNotFound, explain
from llm_operator.ports.registry.nouns import Choices, ModelSummary, Reference
from llm_operator.state import Connection, ModelVersion

log = logging.getLogger(__name__)
API = "/api/2.0/mlflow"
MOST_CHOICES = 1000
"""Names that are looked through for those near a wrong one."""


class MlflowRegistry:
    """MLflow's REST API. One HTTP client per connection,
    made anew when its address or CA changes."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, timeout_seconds: float = 10.0
    ) -> None:
        self._transport = transport
        self._timeout = timeout_seconds
        self._clients: dict[tuple[str, str], httpx.AsyncClient] = {}

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        with _making_sense(connection, f"on {reference}"):
            found = await self._found(connection, reference)
            if not (version := str(found["version"] or "")):
                raise ValueError("no version")
            query = {"name": reference.name, "version": version}
            where = await self._call(
                connection, reference, "GET", "model-versions/get-download-uri", query
            )
            source = str(where.get("artifact_uri", ""))
            made = _moment(found.get("creation_timestamp"))
            return ModelVersion(
                reference.name, version, source, str(found.get("run_id") or ""), made
            )

    async def _found(self, connection: Connection, reference: Reference) -> dict[str, Any]:
        if reference.stage:
            return await self._newest_in_stage(connection, reference)
        if not reference.alias:
            return await self._version(connection, reference, str(reference.version))
        query = {"name": reference.name, "alias": reference.alias}
        return dict(
            (await self._call(connection, reference, "GET", "registered-models/alias", query))[
                "model_version"
            ]
        )

    async def _version(
        self, connection: Connection, reference: Reference, version: str
    ) -> dict[str, Any]:
        query = {"name": reference.name, "version": version}
        answer = await self._call(connection, reference, "GET", "model-versions/get", query)
        return dict(answer["model_version"])

    async def _newest_in_stage(
        self, connection: Connection, reference: Reference
    ) -> dict[str, Any]:
        body = {"name": reference.name, "stages": [reference.stage]}
        answer = await self._call(
            connection, reference, "POST", "registered-models/get-latest-versions", body
        )
        versions = answer.get("model_versions", [])
        if not versions:
            raise VersionNotFound(
                f"no version of {reference.name} is in stage {reference.stage} on"
                f" {connection.tracking_uri}: move one there, or prefer an alias (stages are"
                " deprecated in MLflow)"
            )
        return max(versions, key=lambda version: int(version["version"]))

    async def choices(
        self, connection: Connection, reference: Reference, *, model: bool
    ) -> Choices:
        with _making_sense(connection, f"to the question what there is instead of {reference}"):
            if model:
                query = {"max_results": str(MOST_CHOICES)}
                answer = await self._call(
                    connection, None, "GET", "registered-models/search", query
                )
                names = {str(each["name"]): "" for each in answer.get("registered_models") or []}
            elif reference.version:
                quote = '"' if "'" in reference.name else "'"
                query = {
                    "filter": f"name = {quote}{reference.name}{quote}",
                    "max_results": str(MOST_CHOICES),
                }
                answer = await self._call(connection, None, "GET", "model-versions/search", query)
                names = {
                    str(int(each["version"])): "" for each in answer.get("model_versions") or []
                }
            else:
                answer = await self._call(
                    connection, reference, "GET", "registered-models/get", {"name": reference.name}
                )
                found = _summary(answer["registered_model"])
                names = found.aliases if reference.alias else found.stages
            return Choices(names, more=bool(answer.get("next_page_token")))

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        found: dict[str, ModelSummary] = {}
        token = ""
        while True:
            query = {"max_results": "1000"} | ({"page_token": token} if token else {})
            answer = await self._call(connection, None, "GET", "registered-models/search", query)
            with _making_sense(connection, "to the search for models"):
                found |= _summaries(answer.get("registered_models") or [], connection)
            token = answer.get("next_page_token") or ""
            if not token:
                return found

    async def tags(self, connection: Connection, name: str, version: str) -> dict[str, str]:
        reference = Reference(name, version=version)
        with _making_sense(connection, f"on {reference}"):
            return _tags(await self._version(connection, reference, version))

    async def tag(
        self, connection: Connection, name: str, version: str, key: str, value: str
    ) -> None:
        body = {"name": name, "version": version, "key": key, "value": value}
        await self._call(
            connection, Reference(name, version=version), "POST", "model-versions/set-tag", body
        )

    async def untag(self, connection: Connection, name: str, version: str, key: str) -> None:
        body = {"name": name, "version": version, "key": key}
        await self._call(
            connection,
            Reference(name, version=version),
            "DELETE",
            "model-versions/delete-tag",
            body,
        )

    async def tagged(
        self, connection: Connection, key: str
    ) -> dict[tuple[str, str], dict[str, str]]:
        query = {"filter": f"tags.`{key}` LIKE '%'", "max_results": "1000"}
        found: dict[tuple[str, str], dict[str, str]] = {}
        while True:
            answer = await self._call(connection, None, "GET", "model-versions/search", query)
            with _making_sense(connection, "to the search for tags"):
                found |= {
                    (v["name"], str(v["version"])): _tags(v)
                    for v in answer.get("model_versions") or []
                }
            if not (token := answer.get("next_page_token")):
                return found
            query["page_token"] = token

    async def _call(
        self,
        connection: Connection,
        reference: Reference | None,
        method: str,
        path: str,
        query: dict[str, Any],
    ) -> dict[str, Any]:
        try:
            answer = await self._request(connection, method, path, query)
        # A question that can't be sent (bad address, proxy, certificate, or a password that fits
        # into no header) is a fault of this connection and must reach no other.
        except Exception as error:
            metrics.REGISTRY_CALLS.labels(connection.name, "unreachable").inc()
            proxy = proxy_for(connection.tracking_uri)
            way = (
                f" through the proxy {without_password(proxy)} (NO_PROXY leaves hosts out)"
                if proxy
                else ""
            )
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise RegistryUnreachable(
                f"MLflow at {connection.tracking_uri} does not answer{way} ({reason}). The"
                " current version keeps serving, and the operator tries again by itself. To check:"
                f" curl {connection.tracking_uri}/health"
            ) from error
        metrics.REGISTRY_CALLS.labels(connection.name, str(answer.status_code)).inc()
        if answer.status_code != 200:
            raise explain(answer, connection, reference)
        try:
            return dict(answer.json())
        except (ValueError, TypeError) as error:
            raise RegistryUnreachable(
                f"{connection.tracking_uri} answered something that is not MLflow's JSON: is the"
                f" tracking URI right? It began with {answer.text[:60]!r}",
                answered=True,
            ) from error

    async def _request(
        self, connection: Connection, method: str, path: str, query: dict[str, Any]
    ) -> httpx.Response:
        return await self._client(connection).request(
            method,
            f"{connection.tracking_uri}{API}/{path}",
            params=query if method == "GET" else None,
            json=query if method != "GET" else None,
            headers=headers_of(connection),
            auth=auth_of(connection),
        )

    def _client(self, connection: Connection) -> httpx.AsyncClient:
        identity = (connection.tracking_uri, connection.ca)
        if identity not in self._clients:
            self._clients[identity] = httpx.AsyncClient(
                transport=self._transport,
                timeout=self._timeout,
                verify=tls_of(connection),
                proxy=None if self._transport else proxy_for(connection.tracking_uri),
                trust_env=False,
            )
        return self._clients[identity]


def _tags(version: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in version.get("tags") or []}


def _moment(milliseconds: object) -> str:
    """RFC 3339; empty for what is no moment."""
    try:
        return datetime.fromtimestamp(int(str(milliseconds)) / 1000, UTC).isoformat(
            timespec="milliseconds"
        )
    except (ValueError, OverflowError, OSError):
        return ""


@contextmanager
def _making_sense(connection: Connection, about: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RegistryUnreachable(
            f"MLflow at {connection.tracking_uri} gave an unexpected answer {about}"
            f" ({type(error).__name__}: {error}): is the tracking URI right, and the server a"
            " supported one?",
            answered=True,
        ) from error


def _summaries(models: Iterable[dict[str, Any]], connection: Connection) -> dict[str, ModelSummary]:
    """By name. A model that can't be read is left out, and no other with it."""
    found: dict[str, ModelSummary] = {}
    for model in models:
        try:
            found[str(model["name"])] = _summary(model)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            log.warning(
                "connection %s: a model of its list can't be read (%r): %.200s",
                connection.name,
                error,
                model,
            )
    return found


def _summary(model: dict[str, Any]) -> ModelSummary:
    stages: dict[str, str] = {}
    for version in model.get("latest_versions") or []:
        stages[version.get("current_stage", "None")] = str(version["version"])
    aliases = {a["alias"]: str(a["version"]) for a in model.get("aliases") or []}
    return ModelSummary(aliases, stages, _moment(model.get("creation_timestamp")))
