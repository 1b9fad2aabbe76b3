"""Which Services, budget and HTTPRoute exist at a moment of a roll-out. network.py builds them."""

from llm_operator.plans import names
from llm_operator.plans.objects import network
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import Decision, strategy_named
from llm_operator.state import Fault, Manifest, Observed


def objects(observed: Observed, decision: Decision) -> list[Manifest]:
    """Services, budget and route.
    They come before the Deployments: clients turn before old pods are told to go."""
    meta = observed.meta
    spec = observed.spec
    found = list[Manifest]()
    if decision.serving:
        found.append(network.service(meta, spec, decision.serving))
        if spec.replicas > 1 or spec.autoscaling:
            # A single pod may go at any time, or its node could not be drained.
            found.append(network.disruption_budget(meta, decision.serving))
    candidate = decision.candidate if decision.rolling_out else None
    if candidate is not None and decision.stable is not None:
        found.append(
            network.side_service(meta, spec, names.candidate_service(meta), candidate.revision)
        )
    if decision.stable is not None and (route := spec.rollout.http_route) is not None:
        found.append(
            network.side_service(meta, spec, names.stable_service(meta), decision.stable.revision)
        )
        if observed.http_routes:
            found.append(
                network.http_route(
                    meta, spec, route, decision.weight, candidate=candidate is not None
                )
            )
    return found


def routed(observed: Observed) -> bool:
    """Whether an HTTPRoute shares out the traffic, and not the numbers of pods."""
    rollout = observed.spec.rollout
    strategy = strategy_named(rollout.strategy)
    able = strategy is not None and strategy.routes
    return able and rollout.http_route is not None and observed.http_routes


def fault(observed: Observed) -> Fault | None:
    """A route that the cluster can't have."""
    if observed.spec.rollout.http_route is None or observed.http_routes:
        return None
    return Fault(
        Reason.GatewayApiMissing,
        "spec.rollout.canary.httpRoute is written but the cluster has no HTTPRoute CRD: install the"
        " Gateway API, or remove it; until then the share of a canary follows from the numbers of"
        " pods",
    )
