"""Which pods of a revision go first when it is to have fewer: those with the least to do.

The ReplicaSet's controller stops the ready pods with the lowest pod-deletion-cost first (Kubernetes
documentation, "ReplicaSet"). All have 0 unless somebody says otherwise. The pods that are to go are
named a moment before their Deployment is made smaller, by figures of that moment. So nothing is
written while the size stays, and the marks go with the pods that have them.
"""

import asyncio
import logging

from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.ports.cluster import ApiError
from llm_operator.reconcile.own_pods import own_ready_pods
from llm_operator.state import Manifest, Observed

log = logging.getLogger(__name__)
COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST = "-1"


async def name_idle(outside: Outside, observed: Observed, deployment: Manifest) -> None:
    """Mark the pods that are to go before `deployment` is applied with fewer replicas.

    It is a hint: pods that can't be asked or marked keep nothing from being scaled. Where
    spec.pod.annotations has costs of its own, they decide.
    """
    wanted = int(deployment["spec"]["replicas"])
    template = deployment["spec"]["template"]["metadata"]
    if wanted == 0 or COST in (template.get("annotations") or {}):
        return
    try:
        ready = await own_ready_pods(outside, observed, names.revision_of(deployment))
        first = await _idlest(outside, ready, len(ready) - wanted)
        await asyncio.gather(
            *(
                _mark(outside, pod, FIRST if pod["metadata"]["name"] in first else None)
                for pod in ready
            )
        )
    except ApiError as error:
        meta = observed.meta
        log.warning(
            "%s/%s: its idle pods may not be the first to go: %s", meta.namespace, meta.name, error
        )


async def _idlest(outside: Outside, ready: list[Manifest], leaving: int) -> set[str]:
    """Names of so many pods. A pod that does not answer counts as the busiest."""
    if leaving <= 0:  # Pods that are not ready go before all others.
        return set()
    figures = await asyncio.gather(*(outside.pods.figures(pod) for pod in ready))
    loads = {
        pod["metadata"]["name"]: each.load.running + each.load.waiting
        for pod, each in zip(ready, figures, strict=True)
        if each is not None and each.load is not None
    }
    return set(sorted(loads, key=lambda name: (loads[name], name))[:leaving])


async def _mark(outside: Outside, pod: Manifest, cost: str | None) -> None:
    """Write the cost, where it is another one than before; None takes our mark away."""
    about = pod["metadata"]
    before = (about.get("annotations") or {}).get(COST)
    if before == cost or (cost is None and before != FIRST):
        return
    change = {"metadata": {"annotations": {COST: cost}}}
    await outside.cluster.patch("Pod", about["namespace"], about["name"], change)
