"""What should exist for an LLMDeployment at a moment of its roll-out, and what should not. Each
object has its builder in the other modules of this folder."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_operator.plans import names
from llm_operator.plans.objects import (
    adapters,
    autoscale,
    keys,
    monitor,
    network,
    revision,
    shadow,
    workload,
)
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import Decision, Wanted
from llm_operator.state import Fault, Manifest, Observed


@dataclass(frozen=True)
class Children:
    """The objects of one LLMDeployment."""

    key_file: Manifest
    adapters: Manifest | None
    """The Secret with the adapters, where pods have a container that fetches some."""
    objects: tuple[Manifest, ...]
    """All others, in the order of need."""
    delete: tuple[Manifest, ...]
    fault: Fault | None
    """What of them can't be as it is asked for."""


def planned(observed: Observed, decision: Decision, target: Wanted | None) -> Children:
    """The children, by what the roll-out has decided.
    `target`: the revision that the specification asks for."""
    meta = observed.meta
    spec = observed.spec
    fetching = revision.fetching(observed)
    rebuilt = {name: revision.snapshot(observed, name, target) for name in decision.replicas}
    snapshots = {name: each for name, each in rebuilt.items() if each is not None}
    lost = [name for name, pods in decision.replicas.items() if pods and name not in snapshots]
    templates = [each.template for each in snapshots.values()]
    fetches = fetching or any(map(revision.fetches_adapters, templates))
    revisions = workload.objects(observed, decision, snapshots)
    copied = shadow.file(observed, decision)
    beside = adapters.beside_keys(observed, fetching)
    listed = adapters.secret(observed) if fetches else None
    operators = [observed.operator_key] if observed.operator_key else []
    key_file = keys.keys_secret(meta, spec.access, (*observed.keys, *operators), beside, copied)
    registry = [keys.registry_secret(meta, observed.connection)] if spec.model.mlflow else []
    account = network.service_account(meta, observed.pull_secrets)
    objects = [account, *registry, *network.objects(observed, decision), *revisions]
    objects += autoscale.objects(observed)
    if observed.service_monitors and spec.monitoring.service_monitor.enabled != "Disabled":
        objects.append(monitor.service_monitor(meta, spec))
    return Children(
        key_file=key_file,
        adapters=listed,
        objects=tuple(objects),
        delete=prune(observed, objects, decision),
        fault=_fault(observed, lost[-1] if lost else "") or network.fault(observed),
    )


def prune(
    observed: Observed, objects: Iterable[Manifest], decision: Decision
) -> tuple[Manifest, ...]:
    """Own children that are not wanted.
    A revision's Deployment goes last: a crash in between leaves it findable."""
    wanted = {(o["kind"], o["metadata"]["name"]) for o in objects}
    # A revision that can't be rebuilt still serves:
    # it is no longer repaired, but not taken away either.
    kept = {
        names.child(observed.meta, name) for name, replicas in decision.replicas.items() if replicas
    }
    unwanted = [
        child
        for child in observed.children
        if (child["kind"], child["metadata"]["name"]) not in wanted
        and not (child["kind"] in ("Deployment", "ConfigMap") and child["metadata"]["name"] in kept)
        # Without a decision on what serves, nothing that serves is taken away.
        and not (not decision.serving and child["kind"] in ("Service", "PodDisruptionBudget"))
    ]
    return tuple(sorted(unwanted, key=lambda child: child["kind"] == "Deployment"))


def _fault(observed: Observed, lost: str) -> Fault | None:
    """What is wrong. `lost`: a running revision that can't be rebuilt; empty: none."""
    if (
        lost
        and observed.spec.model.mlflow
        and observed.connection is None
        and observed.resolution.fault
    ):
        return observed.resolution.fault
    if lost:
        return Fault(
            Reason.RevisionLost,
            f"the ConfigMap {names.child(observed.meta, lost)} was deleted or changed: its pods"
            " keep running, but a new pod of this revision can't start; change the specification"
            " or move the alias to roll out a new one",
        )
    asked = observed.spec.monitoring.service_monitor.enabled == "Enabled"
    if asked and not observed.service_monitors:
        return Fault(
            Reason.ServiceMonitorMissing,
            "spec.monitoring.serviceMonitor.enabled is Enabled but the cluster has no"
            " ServiceMonitor CRD: install the Prometheus operator, or write Auto",
        )
    return None
