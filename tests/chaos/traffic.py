"""Whom the clients reached: the Service and the pods behind it,
in the order in which the API server told of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from control_plane.operator_fixtures import Json
from llm_operator.state import pod_ready

REVISION = "llm-operator.dev/revision"
DEPLOYMENT = "llm-operator.dev/deployment"


@dataclass(frozen=True)
class Moment:
    """What one change left behind the Service."""

    alone: str | None
    """The one revision that the Service selects; None: pods of all revisions."""
    ready: Counter[str]
    """Ready pods behind the Service, by revision."""


def moments(name: str, services: list[Json], pods: list[Json]) -> list[Moment]:
    """The life of an LLMDeployment's Service, change by change.
    Versions of resources grow in the order of writes."""
    own = [service for service in services if service["metadata"]["name"] == name]
    own += [pod for pod in pods if pod["metadata"]["labels"].get(DEPLOYMENT) == name]
    found = list[Moment]()
    selector = dict[str, str]()
    ready = dict[str, str]()
    for each in sorted(own, key=lambda one: int(one["metadata"]["resourceVersion"])):
        meta = each["metadata"]
        if each["kind"] == "Service":
            selector = each["spec"]["selector"]
        elif pod_ready(each):
            ready[meta["uid"]] = meta["labels"][REVISION]
        else:
            ready.pop(meta["uid"], None)
        if selector:
            alone = selector.get(REVISION)
            found.append(
                Moment(alone, Counter(each for each in ready.values() if alone in (None, each)))
            )
    return found
