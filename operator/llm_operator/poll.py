"""Asks each MLflow server once per interval what moved,
and wakes only the LLMDeployments concerned."""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from llm_operator.observe import ConnectionSource, permitted
from llm_operator.plans.reasons import Reason
from llm_operator.ports.cluster import ApiError, Cluster
from llm_operator.ports.registry import CachedRegistry, ModelSummary, RegistryFault, read_connection
from llm_operator.state import Key, Manifest

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""Between two looks at one server that webhooks ask for."""

TOLD = ("RegistryReachable", "AdaptersReady")
"""The conditions that tell of a connection."""
ABSENT = frozenset({Reason.ModelNotFound, Reason.AliasNotFound, Reason.VersionNotFound})
REFUSED = frozenset({Reason.InvalidSpec, Reason.NotPermitted})
ADAPTERS_RESOLVED = frozenset(
    {
        Reason.AdaptersLoaded,
        Reason.AdapterLoading,
        Reason.AdapterJudged,
        Reason.AdapterRefused,
        Reason.NoReadyPods,
    }
)


class Poll:
    """The level-triggered watch on the registry: it compares what is with what each status says."""

    def __init__(
        self,
        cluster: Cluster,
        registry: CachedRegistry,
        connections: ConnectionSource,
        have_reconciled: Callable[[Key], None],
        namespaces: tuple[str, ...],
    ) -> None:
        self._cluster = cluster
        self._registry = registry
        self._connections = connections
        self._have_reconciled = have_reconciled
        self._namespaces = namespaces or ("",)

        self._rung: set[str] = set()
        self._attended: dict[str, asyncio.Task[None]] = {}

    def wake(self, connection: str, model: str | None) -> None:
        """Look at this server at once, at most one look a second:
        a webhook says that `model` has changed."""
        if model is not None:
            with suppress(RegistryFault):
                self._registry.forget(
                    read_connection(connection, self._connections.current()), model
                )
        self._rung.add(connection)
        if connection not in self._attended:
            self._attended[connection] = asyncio.create_task(self._attend(connection))

    async def _attend(self, connection: str) -> None:
        try:
            while connection in self._rung:
                self._rung.discard(connection)
                await self.look(connection)
                await asyncio.sleep(LOOK_SECONDS)
        except Exception as error:
            _log_failed(f"a webhook of connection {connection} was not followed", error)
        finally:
            del self._attended[connection]

    async def run(self, interval_seconds: float) -> None:
        """Look for ever, with jitter so that several operators do not ask in step."""
        while True:
            await asyncio.sleep(interval_seconds * random.uniform(0.8, 1.0))
            try:
                await self.look()
            except Exception as error:
                # The poll is for all: nothing that is odd about one object or server may end it.
                _log_failed("polling failed", error)

    async def look(self, only: str | None = None) -> None:
        """One round over all connections that some LLMDeployment uses, or over one of them.

        A namespace that can't be listed, a server and an object that can't be read are told,
        and left out alone.
        """
        by_connection: dict[str, list[Manifest]] = defaultdict(list)
        for resource in [
            each for namespace in self._namespaces for each in await self._listed(namespace)
        ]:
            for connection in _connections(resource):
                by_connection[connection].append(resource)
        chosen = (
            by_connection
            if only is None
            else {name: by_connection[name] for name in {only} & by_connection.keys()}
        )
        looks = [self._look_at(name, resources) for name, resources in chosen.items()]
        for name, error in zip(
            chosen, await asyncio.gather(*looks, return_exceptions=True), strict=True
        ):
            if isinstance(error, Exception):
                _log_failed(f"polling connection {name} failed", error)

    async def _listed(self, namespace: str) -> list[Manifest]:
        try:
            return await self._cluster.list("LLMDeployment", namespace)
        except ApiError as error:
            of_namespace = f" of namespace {namespace}" if namespace else ""
            _log_failed(f"polling{of_namespace} failed", error)
            return []

    async def _look_at(self, name: str, resources: list[Manifest]) -> None:
        try:
            connection = read_connection(name, self._connections.current())
            found = await self._registry.summary(connection)
        except RegistryFault as fault:
            for resource in resources:
                own = bool(model := _mlflow(resource)) and _server(model) == name
                if (
                    _reason(resource, "RegistryReachable" if own else "AdaptersReady")
                    != fault.fault.reason
                ):
                    self._wake(resource)
            return
        kept_out = await self._kept_out(name, {each["metadata"]["namespace"] for each in resources})
        for resource in resources:
            if resource["metadata"]["namespace"] in kept_out:
                if Reason.ConnectionNotPermitted not in (_reason(resource, kind) for kind in TOLD):
                    self._wake(resource)
            elif names := moved(resource, name, found):
                for each in names:
                    self._registry.forget(connection, each)
                self._wake(resource)

    async def _kept_out(self, name: str, namespaces: set[str]) -> set[str]:
        """The namespaces that may not use this connection. For them nothing on it moves."""
        settings = self._connections.current()[name]
        found = set[str]()
        for namespace in sorted(namespaces):
            try:
                if not await permitted(self._cluster, settings, namespace):
                    found.add(namespace)
            except ApiError as error:
                _log_failed(f"polling connection {name} for namespace {namespace} failed", error)
        return found

    def _wake(self, resource: Manifest) -> None:
        meta = resource["metadata"]
        self._have_reconciled(Key("LLMDeployment", meta["namespace"], meta["name"]))


def _log_failed(what: str, error: Exception) -> None:
    log.warning("%s: %s", what, error, exc_info=None if isinstance(error, ApiError) else error)


def _connections(resource: Manifest) -> set[str]:
    """The servers that it refers to; none for one that can't be read, which its own status says."""
    try:
        return {_server(asked) for asked in _asked(resource)}
    except (LookupError, TypeError, AttributeError):
        return set()


def moved(resource: Manifest, connection: str, found: dict[str, ModelSummary]) -> list[str]:
    """The models on this server of which the registry now says something else than the status of
    `resource`."""
    status = resource.get("status") or {}
    names = list[str]()
    asked = _mlflow(resource)
    doubtful = (
        _status(resource, "RegistryReachable") == "False"
        or _status(resource, "ModelResolved") != "True"
    )
    here = asked and _server(asked) == connection and not _settled(resource, asked, found)
    if here and (doubtful or _differs(asked, status.get("model") or {}, found)):
        names.append(asked["name"])
    # Whether pods have loaded them is not for the registry to say.
    doubtful = _reason(resource, "AdaptersReady") not in ADAPTERS_RESOLVED
    # What is behind its gates, or was refused by them,
    # is what the reference was seen to stand for last.
    known = {
        each["name"]: each
        for listed in ("adapters", "adapterCandidates")
        for each in status.get(listed) or []
    }
    for adapter in _adapters(resource):
        asked = adapter["mlflow"]
        if _server(asked) == connection and (
            doubtful or _differs(asked, known.get(adapter["name"], {}), found)
        ):
            names.append(asked["name"])
    return names


def _settled(resource: Manifest, asked: Manifest, found: dict[str, ModelSummary]) -> bool:
    """Whether its fault was reported and another look would find the same. Thousands of such
    objects must not be looked at again."""
    stalled = _reason(resource, "Stalled")
    if stalled in REFUSED:
        return not (resource.get("status") or {}).get(
            "model"
        )  # What runs may come back to a version that it had.
    return stalled in ABSENT and not _there(asked, found.get(asked["name"]))


def _there(asked: Manifest, model: ModelSummary | None) -> bool:
    """Whether the registry may have what is asked for."""
    if model is None:
        return False
    if asked.get("alias"):
        return asked["alias"] in model.aliases
    if asked.get("stage"):
        return asked["stage"] in model.stages
    return any(int(newest) >= int(asked["version"]) for newest in model.stages.values())


def _differs(asked: Manifest, known: Manifest, found: dict[str, ModelSummary]) -> bool:
    model = found.get(asked["name"])
    if model is None:
        return True
    # With updatePolicy Manual the status knows what waits beside what is used.
    latest = known.get("available") or known
    made = latest.get("registeredAt") or ""
    version = latest.get("version")
    if made and model.registered_at > made:
        return True  # The model was deleted and registered anew: its numbers begin again.
    if asked.get("alias"):
        return model.aliases.get(asked["alias"]) != version
    if asked.get("stage"):
        return model.stages.get(asked["stage"]) != version
    return False


def _asked(resource: Manifest) -> list[Manifest]:
    """All references to registered models."""
    model = _mlflow(resource)
    return [*([model] if model else []), *(adapter["mlflow"] for adapter in _adapters(resource))]


def _adapters(resource: Manifest) -> list[Manifest]:
    return resource["spec"].get("adapters") or []


def _server(asked: Manifest) -> str:
    return str(asked.get("connection", "default"))


def _mlflow(resource: Manifest) -> Manifest:
    """Empty for a model that is in no registry."""
    mlflow: Manifest = resource["spec"]["model"].get("mlflow") or {}
    return mlflow


def _condition(resource: Manifest, kind: str) -> Manifest:
    conditions = (resource.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def _status(resource: Manifest, kind: str) -> str:
    return str(_condition(resource, kind).get("status", ""))


def _reason(resource: Manifest, kind: str) -> str:
    return str(_condition(resource, kind).get("reason", ""))
