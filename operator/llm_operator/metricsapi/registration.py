"""The APIServices by which the API server finds us. What belongs to somebody else, such as
prometheus-adapter or KEDA, is left alone and told."""

import asyncio
from dataclasses import dataclass

from llm_operator.metricsapi.answers import VERSIONS
from llm_operator.plans.names import MANAGED_BY, managed
from llm_operator.ports.cluster import Cluster
from llm_operator.state import Manifest

LABELS = {"app.kubernetes.io/name": "llm-operator", "app.kubernetes.io/managed-by": MANAGED_BY}
OTHERS = {"custom.metrics.k8s.io": ("v1beta1",), "external.metrics.k8s.io": ()}
"""By group: versions that we do not serve. Who serves one is asked for the group's metrics, and
would lose them to a version beside it that clients like better."""


@dataclass(frozen=True)
class Place:
    """Where the API server finds us."""

    namespace: str
    service: str
    port: int

    @property
    def host(self) -> str:
        """The name that the API server asks for in TLS."""
        return f"{self.service}.{self.namespace}.svc"


async def register(
    cluster: Cluster, place: Place, bundle: str, owners: list[Manifest]
) -> dict[str, str]:
    """Bring the APIServices up to date. By group: why it is not ours; empty: it is.

    `bundle`: what the API server trusts, as caBundle has it. Raises ApiError.
    """
    return {group: await _group(cluster, group, place, bundle, owners) for group in VERSIONS}


async def _group(
    cluster: Cluster, group: str, place: Place, bundle: str, owners: list[Manifest]
) -> str:
    wanted = manifest(group, place, bundle, owners)
    versions = (VERSIONS[group], *OTHERS[group])
    live, *others = await asyncio.gather(
        *(cluster.get("APIService", "", f"{version}.{group}") for version in versions)
    )
    if live is None:
        taken = next((each for each in others if each is not None), None)
    else:
        taken = None if _ours(live, place) else live
    if taken is not None:
        name = taken["metadata"]["name"]
        return (
            f"APIService {name} belongs to {_holder(taken)}, which is asked for all metrics of"
            f" {group}; it is left alone. Either let it serve the pods' metrics, or have it give"
            f" the group up (kubectl delete apiservice {name}): then this operator takes it"
        )
    if live is None:
        await cluster.create(wanted)
    elif not _as_wanted(live, wanted):
        await cluster.apply(wanted)
    return ""


def manifest(group: str, place: Place, bundle: str, owners: list[Manifest]) -> Manifest:
    """The APIService of a group."""
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": f"{VERSIONS[group]}.{group}",
            "labels": LABELS,
            "ownerReferences": owners,
        },
        "spec": {
            "group": group,
            "version": VERSIONS[group],
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": bundle,
            "service": {
                "namespace": place.namespace,
                "name": place.service,
                "port": place.port,
            },
        },
    }


def _ours(live: Manifest, place: Place) -> bool:
    service = live["spec"].get("service") or {}
    named = (service.get("namespace"), service.get("name"))
    return managed(live) and named == (place.namespace, place.service)


def _as_wanted(live: Manifest, wanted: Manifest) -> bool:
    owners = {each["uid"] for each in live["metadata"].get("ownerReferences") or ()}
    return all(live["spec"].get(name) == value for name, value in wanted["spec"].items()) and all(
        each["uid"] in owners for each in wanted["metadata"]["ownerReferences"]
    )


def _holder(live: Manifest) -> str:
    service = live["spec"].get("service")
    if not service:
        return "the API server itself"
    return f"Service {service['namespace']}/{service['name']}"
