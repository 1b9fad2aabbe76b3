"""Looks at a custom resource, its children and the registry, and says what it saw."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from pydantic import ValidationError

from llm_operator import plans
from llm_operator.confined.children import Confined
from llm_operator.crds import (
    AdapterSpec,
    ApiKeyStatus,
    LLMDeploymentSpec,
    LLMDeploymentStatus,
    MlflowModel,
    ModelStatus,
)
from llm_operator.memory import Memory
from llm_operator.plans import names
from llm_operator.plans.objects import keys, revision, source
from llm_operator.plans.rollout import room
from llm_operator.plans.status import faults
from llm_operator.ports.cluster import ApiError, Cluster, NotFound
from llm_operator.ports.pods import Pods
from llm_operator.ports.prometheus import Prometheus
from llm_operator.ports.registry import (
    ConnectionNotPermitted,
    Reference,
    Registry,
    RegistryFault,
    read_connection,
)
from llm_operator.settings import ConnectionSettings, EvaluationSettings, PodPolicy
from llm_operator.state import (
    Connection,
    Fault,
    Figures,
    Manifest,
    Meta,
    ModelVersion,
    Observed,
    Resolution,
    ResolvedAdapter,
    RevisionChildren,
)

log = logging.getLogger(__name__)
Status = TypeVar("Status", LLMDeploymentStatus, ApiKeyStatus)


class ConnectionSource(Protocol):
    """Where the connections are configured."""

    def current(self) -> dict[str, ConnectionSettings]: ...


@dataclass(frozen=True)
class Outside:
    """Everything that a reconcile may touch:
    what it asks, how the platform has set it up, and its memory."""

    cluster: Cluster
    registry: Registry
    pods: Pods
    connections: ConnectionSource
    image: str
    """Runtime image of pods whose specification names none."""
    clock: Callable[[], datetime]
    metrics_advice: Callable[[], str] = lambda: ""
    """What to do where autoscalers get no metrics of pods; empty: this operator serves them."""
    prometheus: Prometheus | None = None
    confined: Confined = field(default_factory=Confined)
    """Where smoke prompts are read and their answers judged."""
    installation: str = ""
    """Which of several installations this is: the Lease's namespace/name.
    Empty: there is no other."""
    fetch_resources: Manifest = field(default_factory=dict)
    """Resources of the fetching container where a specification has none."""
    pull_secrets: tuple[str, ...] = ()
    """Image pull secrets of pods whose specification has none."""
    policy: PodPolicy = field(default_factory=PodPolicy)
    """What LLMDeployments may ask of their pods."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """How evaluations are made."""
    memory: Memory = field(default_factory=Memory)


WAITING_ASKED = 8
"""Largest number of pods whose Events are read while they wait for their containers. More pods wait
for the same thing."""
NODES_ASKED = 8
"""Largest number of nodes that are read in one look, for pods that do not get ready."""
UNPLACED_ASKED = 3
"""Largest number of pods without a node whose Events are read in one look. A cluster autoscaler
says the same of all."""


def meta_of(resource: Manifest) -> Meta:
    """Who a custom resource is."""
    meta = resource["metadata"]
    return Meta(
        kind=resource["kind"],
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        labels=meta.get("labels") or {},
        deleting="deletionTimestamp" in meta,
        annotations=meta.get("annotations") or {},
    )


async def deployment(outside: Outside, resource: Manifest) -> Observed:
    """Everything about one LLMDeployment but its keys, which `keyring` gives when they are written.

    Raises pydantic.ValidationError for a specification that can't be read.
    """
    meta = meta_of(resource)
    spec = LLMDeploymentSpec.model_validate(resource["spec"])
    status = status_of(LLMDeploymentStatus, resource)
    labels = f"{names.DEPLOYMENT_LABEL}={meta.name}"
    (
        listed,
        pods,
        ((connection, resolution), adapters),
        (monitors, routes, scaled),
        missing,
    ) = await asyncio.gather(
        asyncio.gather(
            *(outside.cluster.list(kind, meta.namespace, labels) for kind in plans.CHILD_KINDS)
        ),
        outside.cluster.list("Pod", meta.namespace, labels),
        asyncio.gather(
            _resolve(outside, meta.namespace, spec, status),
            _resolve_adapters(outside, meta.namespace, spec, status),
        ),
        asyncio.gather(
            *(_optional(outside, kind, meta, labels) for kind in ("ServiceMonitor", "HTTPRoute")),
            # Without labels: one that somebody else made may scale the same pods.
            _optional(outside, "ScaledObject", meta, ""),
        ),
        _database_missing(outside.cluster, meta, spec),
    )
    children = [child for group in listed for child in group if names.ours(child, meta)]
    revisions = _revisions(meta, status, children, pods)
    now = outside.clock()
    events, figures, coming, silent = await asyncio.gather(
        _events(outside.cluster, meta, pods),
        _figures(outside.pods, spec, status, pods),
        _nodes_coming(outside, meta, status, pods),
        _silent_nodes(outside.cluster, pods, now),
    )
    found = {
        name: fault
        for name, each in revisions.items()
        if (fault := faults.worst(each.pods, each.deployment, events, now, silent)) is not None
    }
    return Observed(
        meta=meta,
        spec=spec,
        status=status,
        resolution=resolution,
        connection=connection,
        revisions=revisions,
        children=(
            *children,
            *(
                c
                for c in (*(monitors or ()), *(routes or ()), *(scaled or ()))
                if names.ours(c, meta)
            ),
        ),
        image=outside.image,
        fetch_resources=outside.fetch_resources,
        pull_secrets=outside.pull_secrets,
        app_armor_profile=outside.policy.app_armor_profile,
        faults=found,
        database_missing=missing,
        service_monitors=monitors is not None,
        http_routes=routes is not None,
        coming=coming,
        autoscaler=next((c for c in children if c["kind"] == "HorizontalPodAutoscaler"), None),
        scaled_objects=None if scaled is None else tuple(scaled),
        metrics_advice=outside.metrics_advice(),
        adapters=adapters,
        connections=await _connections(outside, meta.namespace, adapters, status),
        figures=figures,
        verdict_refusal=ledger.refusal if (ledger := outside.memory.ledgers.get(meta.key)) else "",
    )


async def _figures(
    asked: Pods, spec: LLMDeploymentSpec, status: LLMDeploymentStatus, pods: list[Manifest]
) -> dict[str, Figures]:
    """What pods say of themselves, asked while something depends on it:
    a download, a roll-out, adapters."""
    under_way = status.candidate is not None and status.candidate.outcome is None
    interesting = [
        pod
        for pod in pods
        if faults.fetching(pod) or ((under_way or spec.adapters) and faults.ready(pod))
    ]
    found = await asyncio.gather(*(asked.figures(pod) for pod in interesting))
    return {
        pod["metadata"]["name"]: figures
        for pod, figures in zip(interesting, found, strict=True)
        if figures is not None
    }


async def _optional(outside: Outside, kind: str, meta: Meta, labels: str) -> list[Manifest] | None:
    """Children of a kind that the cluster may not know; None where it does not.

    ServiceMonitors and ScaledObjects that can't be listed are applied all the same,
    and told if they can't: nothing that serves waits for them.
    """
    if not await outside.cluster.serves(kind):
        return None
    try:
        return await outside.cluster.list(kind, meta.namespace, labels)
    except NotFound:
        return None  # Its CRD was removed a moment ago.
    except ApiError as error:
        if kind == "HTTPRoute":
            raise
        log.warning("the %ss of %s can't be listed: %s", kind, meta.namespace, error)
        return []


async def _database_missing(cluster: Cluster, meta: Meta, spec: LLMDeploymentSpec) -> str:
    for reference, address in (
        (spec.database.secret_ref, "postgresql://USER:PASSWORD@HOST/DATABASE"),
        (spec.database.redis_secret_ref, "redis://HOST"),
    ):
        if reference is None:
            continue
        name = reference.name
        key = reference.key
        kubectl = f"kubectl -n {meta.namespace}"
        secret = await cluster.get("Secret", meta.namespace, name)
        if secret is None:
            create = f"{kubectl} create secret generic {name} --from-literal={key}={address}"
            return f"Secret {name} does not exist; new pods wait for it: {create}"
        if not keys.decode(secret, key):
            content = json.dumps({"stringData": {key: address}})
            return (
                f"Secret {name} has no key {key}; new pods wait for it: {kubectl} patch secret"
                f" {name} -p '{content}'"
            )
    return ""


def _revisions(
    meta: Meta, status: LLMDeploymentStatus, children: list[Manifest], pods: list[Manifest]
) -> dict[str, RevisionChildren]:
    def named(child: Manifest) -> bool:
        # Anybody who may write Deployments can give one our label and owner. The right one is
        # told by its name, which only one can have.
        return bool(child["metadata"]["name"] == names.child(meta, names.revision_of(child)))

    parts = [
        child for child in children if child["kind"] in ("Deployment", "ConfigMap") and named(child)
    ]

    def of(items: list[Manifest], name: str) -> list[Manifest]:
        return [item for item in items if names.revision_of(item) == name]

    def children_of(name: str) -> RevisionChildren:
        found = {part["kind"]: part for part in reversed(of(parts, name))}
        made = found.get("Deployment")
        config = found.get("ConfigMap")
        remembers = revision.believed(status, name, config, made)
        return RevisionChildren(name, made, config if remembers else None, tuple(of(pods, name)))

    known = {names.revision_of(part) for part in parts} - {""}
    return {name: children_of(name) for name in sorted(known)}


async def _events(cluster: Cluster, meta: Meta, pods: list[Manifest]) -> dict[str, list[Manifest]]:
    """Events about pods that wait for their containers, which have nothing else to show."""
    waiting = [pod["metadata"]["name"] for pod in pods if faults.waits_for_containers(pod)]
    return await _events_of(cluster, meta, waiting[:WAITING_ASKED])


async def _events_of(cluster: Cluster, meta: Meta, pods: list[str]) -> dict[str, list[Manifest]]:
    """The Events of these pods, by their names.
    They are a hint: where they can't be read there are none."""

    async def of(name: str) -> list[Manifest]:
        try:
            return await cluster.list("Event", meta.namespace, fields=f"involvedObject.name={name}")
        except ApiError as error:
            log.warning("the Events of pod %s/%s can't be read: %s", meta.namespace, name, error)
            return []

    return dict(zip(pods, await asyncio.gather(*(of(name) for name in pods)), strict=True))


async def _silent_nodes(cluster: Cluster, pods: list[Manifest], now: datetime) -> frozenset[str]:
    """Nodes that do not answer, of pods that do not get ready.
    A hint: an operator of some namespaces may not ask."""

    async def silent(name: str) -> bool:
        try:
            return faults.silent(await cluster.get("Node", "", name) or {})
        except ApiError:
            return False

    asked = sorted({pod["spec"]["nodeName"] for pod in pods if faults.doubtful(pod, now)})[
        :NODES_ASKED
    ]
    answers = await asyncio.gather(*(silent(name) for name in asked))
    return frozenset(name for name, answer in zip(asked, answers, strict=True) if answer)


async def _nodes_coming(
    outside: Outside, meta: Meta, status: LLMDeploymentStatus, pods: list[Manifest]
) -> dict[str, str]:
    """What cluster autoscalers say about nodes for pods that find none.
    Only roll-outs wait for nodes."""
    if status.candidate is None or status.candidate.outcome is not None:
        return {}
    unplaced = [pod["metadata"]["name"] for pod in pods if room.unplaced(pod) is not None]
    events = await _events_of(outside.cluster, meta, unplaced[:UNPLACED_ASKED])
    coming = {name: room.coming(words, outside.clock()) for name, words in events.items()}
    return {name: word for name, word in coming.items() if word}


async def connection_for(
    outside: Outside, namespace: str, name: str, field: str = "spec.model.mlflow"
) -> Connection:
    """The connection as LLMDeployments of this namespace may use it.
    Raises a RegistryFault, or ApiError."""
    known = outside.connections.current()
    if name in known and not await permitted(outside.cluster, known[name], namespace):
        raise ConnectionNotPermitted(
            f"connection {name!r} is not for the namespace {namespace}: have the platform team add"
            f" it under connections.{name}.namespaces of the operator's configuration, or write"
            f" another {field}.connection"
        )
    # Where there is none of that name, those are told that the namespace may use by its name.
    mine = {
        each: found for each, found in known.items() if each == name or found.permits(namespace)
    }
    return read_connection(name, mine, field)


async def permitted(cluster: Cluster, settings: ConnectionSettings, namespace: str) -> bool:
    """Whether LLMDeployments of this namespace may use the connection. Raises ApiError."""
    if settings.permits(namespace) or settings.namespace_selector is None:
        return settings.permits(namespace)
    found = await cluster.get("Namespace", "", namespace)
    return found is not None and settings.permits(namespace, found["metadata"].get("labels"))


async def _resolve(
    outside: Outside, namespace: str, spec: LLMDeploymentSpec, status: LLMDeploymentStatus
) -> tuple[Connection | None, Resolution]:
    connection = None
    asked = spec.model.mlflow
    if asked is None:
        return None, Resolution(source.version(spec.model.uri or ""))
    try:
        connection = await connection_for(outside, namespace, asked.connection)
        return connection, Resolution(
            await outside.registry.resolve(connection, reference_of(asked))
        )
    except RegistryFault as error:
        return connection, Resolution(
            _last_known(asked, status.model) if error.keeps_version else None, error.fault
        )


def reference_of(mlflow: MlflowModel, field: str = "spec.model.mlflow") -> Reference:
    """What the specification asks the registry for."""
    return Reference(mlflow.name, mlflow.alias, mlflow.version, mlflow.stage, field)


async def _resolve_adapters(
    outside: Outside, namespace: str, spec: LLMDeploymentSpec, status: LLMDeploymentStatus
) -> tuple[ResolvedAdapter, ...]:
    asked = spec.adapters or ()
    return tuple(
        await asyncio.gather(
            *(_resolve_adapter(outside, namespace, adapter, status) for adapter in asked)
        )
    )


async def _resolve_adapter(
    outside: Outside, namespace: str, adapter: AdapterSpec, status: LLMDeploymentStatus
) -> ResolvedAdapter:
    """An adapter that can't be resolved any more keeps its last version, whatever the reason:
    it may be in use."""
    field = f"spec.adapters[{adapter.name}].mlflow"
    try:
        connection = await connection_for(outside, namespace, adapter.mlflow.connection, field)
        found = await outside.registry.resolve(connection, reference_of(adapter.mlflow, field))
        return ResolvedAdapter(adapter, Resolution(found))
    except RegistryFault as error:
        known = next((each for each in status.adapters if each.name == adapter.name), None)
        model = ModelVersion(known.model, known.version) if known else None
        return ResolvedAdapter(adapter, Resolution(model, error.fault))


async def _connections(
    outside: Outside,
    namespace: str,
    adapters: Iterable[ResolvedAdapter],
    status: LLMDeploymentStatus,
) -> dict[str, Connection]:
    """The adapters' connections: those of the specification, and of versions that are kept."""
    kept = [each.connection for each in (*status.adapters, *status.adapter_candidates)]
    found: dict[str, Connection] = {}
    for name in {*(adapter.spec.mlflow.connection for adapter in adapters), *kept}:
        with suppress(RegistryFault):
            found[name] = await connection_for(outside, namespace, name)
    return found


def _last_known(asked: MlflowModel, known: ModelStatus | None) -> ModelVersion | None:
    """What the same reference was resolved to before."""
    if known is None or (known.name, known.connection) != (asked.name, asked.connection):
        return None
    same = (
        known.version == asked.version
        if asked.version
        else (known.alias, known.stage) == (asked.alias, asked.stage)
    )
    if not same:
        return None
    return ModelVersion(
        known.name, known.version, known.source or "", known.run_id or "", known.registered_at or ""
    )


def status_of(model: type[Status], resource: Manifest) -> Status:
    """The status of a custom resource.
    What can't be read of it (edited by hand, or a newer operator's) is left out."""
    found = dict(resource.get("status") or {})
    while True:
        try:
            return model.model_validate(found)
        except ValidationError as error:
            odd = {
                str(fault["loc"][0]) for fault in error.errors(include_input=False) if fault["loc"]
            } & found.keys()
            meta = resource["metadata"]
            log.warning(
                "%s/%s: status.%s can't be read",
                meta["namespace"],
                meta["name"],
                ", ".join(sorted(odd)),
            )
            found = {name: value for name, value in found.items() if name not in odd} if odd else {}


__all__ = [
    "Fault",
    "Outside",
    "connection_for",
    "deployment",
    "meta_of",
    "permitted",
    "reference_of",
    "status_of",
]
