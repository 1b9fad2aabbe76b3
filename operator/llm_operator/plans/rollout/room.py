"""The step that looks whether the candidate's pods have a place to run, and whether stopping an old
pod would make one.

The scheduler and the API server are the judges: they alone know taints, affinities, volumes and
quotas. Their messages are read here, so that an old pod is stopped for a new one only where that
can help.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from llm_operator.crds.common import quantity_value
from llm_operator.plans.rollout.decision import Decision
from llm_operator.plans.rollout.move import Lack, Move
from llm_operator.plans.rollout.situation import exists, parse
from llm_operator.state import Manifest

NODE_SECONDS = 900.0
"""How long a node that was ordered may take:
the cluster autoscaler gives one up after 15 minutes."""
ADDS = ("TriggeredScaleUp", "Nominated")
"""Reasons of Events by which the cluster autoscaler and Karpenter say that a node will be there for
the pod."""
ADDS_NOT = ("NotTriggerScaleUp",)
"""Reasons of Events by which the cluster autoscaler says that no node will be there."""
NOT_HELPFUL = "Preemption is not helpful"
"""The scheduler's words for a node where no pod's going would make room."""
VICTIMS = "No preemption victims found"
"""The scheduler's words for a node where other pods stand in the way, none of them of a lower
priority."""
_TAKEN = re.compile(
    r"too many pods|free ports|anti-affinity|topology spread constraints(?!"
    r" .missing)|ReadWriteOncePod|volume count"
    r"|available disk|cannot allocate all claims|not enough|enough resources",
    re.IGNORECASE,
)
"""What an old pod may hold, besides resources with a name."""
_INSUFFICIENT = re.compile(r"insufficient ([\w./-]*\w)", re.IGNORECASE)
_QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>.+), used: .+, limited:"
    r" (?P<limited>.+)"
)


def survey(decision: Decision) -> Decision:
    """The decision with the lack of room for the candidate's pods, if there is one."""
    move = decision.move
    return decision if move is None else replace(decision, lack=lack(move))


def lack(move: Move) -> Lack | None:
    """The reason why a pod of the candidate finds no node;
    None while all have one or nothing is said."""
    children = move.situation.children(move.new)
    old = [pod for pod in move.situation.children(move.old).pods if exists(pod)]
    for pod in filter(exists, children.pods):
        if (refusal := unplaced(pod)) is not None:
            return Lack(refusal, freed(refusal, old), _coming(pod, move.situation.coming))
    if move.situation.staying_pods(move.new) < children.wanted and (
        refusal := _refusal(children.deployment)
    ):
        return Lack(refusal, bool(old) and _quota_frees(refusal))
    return None


def coming(events: Iterable[Manifest], now: datetime) -> str:
    """The message of a cluster autoscaler about a node that it adds for a pod, from the pod's
    Events; empty: no node comes."""
    known = [event for event in events if event.get("reason") in (*ADDS, *ADDS_NOT)]
    newest = max(known, key=_moment, default=None)
    at = parse(_moment(newest)) if newest else None
    if (
        newest is None
        or at is None
        or newest["reason"] in ADDS_NOT
        or (now - at).total_seconds() > NODE_SECONDS
    ):
        return ""
    return str(newest.get("message") or newest["reason"])[:512]


def _moment(event: Manifest) -> str:
    return str(
        event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


def _coming(pod: Manifest, nodes: Mapping[str, str]) -> str:
    nominated = (pod.get("status") or {}).get("nominatedNodeName")
    if nominated:
        return f"the scheduler has other pods stopped for it on node {nominated}"
    return nodes.get(str(pod["metadata"].get("name")), "")


def unplaced(pod: Manifest) -> str | None:
    """The scheduler's message about a pod that it finds no node for;
    None where it has one or was not looked at yet."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if (condition.get("type"), condition.get("reason")) == ("PodScheduled", "Unschedulable"):
            return (
                str(condition.get("message") or "") if condition.get("status") == "False" else None
            )
    return None


def freed(message: str, old: Iterable[Manifest]) -> bool:
    """Whether an old pod that goes may leave the room that the scheduler misses."""
    old = list(old)
    if not old:
        return False
    reasons, _, preemption = message.partition("preemption:")
    if _never(preemption):
        return False
    scarce = _INSUFFICIENT.findall(reasons)
    if any(_holds(pod, resource) for pod in old for resource in scarce):
        return True
    # The reason's wording does not matter here: the scheduler says itself that on this node another
    # pod stands in the way.
    stands = VICTIMS in preemption and not scarce
    return stands or _TAKEN.search(reasons) is not None


def _never(preemption: str) -> bool:
    """Whether the scheduler says of every node that no pod's going would help."""
    parts = re.findall(r"\d+ ([^,.]+)", preemption.partition(":")[2])
    return bool(parts) and all(part.startswith(NOT_HELPFUL) for part in parts)


def _holds(pod: Manifest, resource: str) -> bool:
    spec = pod.get("spec") or {}
    parts = [spec, *(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    asked = [(each.get("resources") or {}).get("requests") or {} for each in parts]
    return any(quantity_value(str(requests.get(resource, "0"))) > 0 for requests in asked)


def _refusal(deployment: Manifest | None) -> str:
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or "")
    return ""


def _quota_frees(message: str) -> bool:
    """Whether a used-up quota would have room for the pod if another were gone.
    Any other refusal stays."""
    match = _QUOTA.search(message)
    if match is None:
        return False
    requested = _amounts(match["requested"])
    limited = _amounts(match["limited"])
    return bool(requested) and all(
        amount <= limited.get(name, 0) for name, amount in requested.items()
    )


def _amounts(message: str) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for name, amount in re.findall(r"([\w./-]+)=([\w.]+)", message):
        with suppress(ValueError):
            found[name] = quantity_value(amount)
    return found
