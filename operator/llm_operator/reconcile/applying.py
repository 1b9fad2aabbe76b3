"""Applies all objects of a plan. An object that is refused keeps no other from its place, and
each is told."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_operator.memory import GONE
from llm_operator.observe import Outside
from llm_operator.plans import Applied, names
from llm_operator.plans.objects import containers, workload
from llm_operator.plans.reasons import Reason
from llm_operator.ports.cluster import ApiError, NotFound, Unanswered
from llm_operator.reconcile import departure
from llm_operator.reconcile.failures import passes
from llm_operator.reconcile.put import NotApplied, SecretReserved, SecretUnfit, put, refused, taken
from llm_operator.state import Fault, Manifest, Meta, Observed, Plan

SILENCES = 2
"""Number of requests in a row without an answer after which no further object is tried in this
look."""
TRAFFIC = frozenset({"Service", "HTTPRoute"})
SIDE = frozenset(
    {"ServiceMonitor", "HorizontalPodAutoscaler", "ScaledObject", "PodDisruptionBudget"}
)


@dataclass(frozen=True)
class Trouble:
    """One object that is not as planned."""

    fault: Fault
    passing: bool = False
    """The API server may do it the next time."""
    side: bool = False
    """Nothing that serves depends on it."""
    turns: bool = False
    """Traffic was to go another way through it."""


async def apply(
    outside: Outside, observed: Observed, plan: Plan, found: Iterable[Trouble]
) -> Applied:
    """Apply everything, then prune. `found`: what went wrong with the key file."""
    troubles = list(found)
    silences = 0
    routed = any(manifest["kind"] == "HTTPRoute" for manifest in plan.objects)
    seen = {(child["kind"], child["metadata"]["name"]): child for child in observed.children}
    for manifest in plan.objects:
        live = seen.get((manifest["kind"], manifest["metadata"]["name"]))
        if any(trouble.turns for trouble in troubles) and _stops_pods(manifest, live):
            continue  # Its clients still come: the Service did not turn away from it.
        try:
            if _starts_pods(manifest, live):
                await _all_ours(outside, observed.meta, manifest)
            if _stops_pods(manifest, live):
                await departure.name_idle(outside, observed, manifest)
            await put(outside, observed.meta, manifest, live)
            silences = 0
        except (NotApplied, ApiError) as error:
            troubles.append(_trouble(manifest, error, live, routed=routed))
            silences = silences + 1 if isinstance(error, Unanswered) else 0
        if silences == SILENCES:
            break
    if all(each.side for each in troubles):
        # A half-applied plan prunes nothing: what is not wanted may still be what serves.
        troubles += await _prune(outside, observed.meta, plan)
    return _together(troubles)


def _trouble(
    manifest: Manifest, error: NotApplied | ApiError, live: Manifest | None, *, routed: bool
) -> Trouble:
    kind = manifest["kind"]
    labels = manifest["metadata"].get("labels") or {}
    # Services beside the endpoint's are for previews, but where a route sends traffic to them.
    side = kind in SIDE or (names.PREVIEW_LABEL in labels and not routed)
    turned = (
        live is not None
        and kind == "Service"
        and live["spec"].get("selector") == manifest["spec"]["selector"]
    )
    turns = kind in TRAFFIC and not side and not turned
    return Trouble(refused(manifest, error), passing=passes(error), side=side, turns=turns)


def _stops_pods(manifest: Manifest, live: Manifest | None) -> bool:
    if manifest["kind"] != "Deployment" or live is None:
        return False
    return int(manifest["spec"]["replicas"]) < int(live["spec"].get("replicas") or 0)


def _starts_pods(manifest: Manifest, live: Manifest | None) -> bool:
    if manifest["kind"] != "Deployment":
        return False
    return int(manifest["spec"]["replicas"]) > (
        int(live["spec"].get("replicas") or 0) if live else 0
    )


async def _all_ours(outside: Outside, owner: Meta, deployment: Manifest) -> None:
    """Raise unless all that new pods would run under, or read, is this owner's.

    A pod takes it by its name: what somebody else keeps under that name must not become this
    deployment's.
    """
    for kind, name, optional in workload.uses(deployment["spec"]["template"]):
        live = await outside.cluster.get(kind, owner.namespace, name)
        if live is None and not optional:
            raise NotFound(f"{kind} {name} is not there yet, and no pod is started without it")
        if live is not None and not names.ours(live, owner):
            raise taken(kind, owner.namespace, name)
    store = workload.store_secret(deployment["spec"]["template"])
    for name in workload.reads(owner, deployment["spec"]["template"]):
        secret = await outside.cluster.get("Secret", owner.namespace, name)
        if name == store:
            _check_store(name, secret)
        if names.reserved(name, secret):
            raise SecretReserved(
                f"Secret {name} is one that the operator keeps for an LLMDeployment or an ApiKey,"
                " or has a name that it gives to those: copy what you need into a Secret with a"
                " name of your own, and name that one"
            )


def _check_store(name: str, secret: Manifest | None) -> None:
    if secret is None and not names.reserved(name, None):
        raise NotFound(
            f"Secret {name} of spec.model.credentialsSecretRef is not there yet: create it"
        )
    if odd := sorted((secret or {}).get("data", {}).keys() - set(containers.STORE_VARIABLES)):
        raise SecretUnfit(
            f"Secret {name} of spec.model.credentialsSecretRef has {', '.join(odd)}, which the"
            " container that also holds the registry's credentials does not take: it takes"
            f" {', '.join(containers.STORE_VARIABLES)}"
        )


async def _prune(outside: Outside, meta: Meta, plan: Plan) -> list[Trouble]:
    found = []
    for child in plan.delete:
        about = child["metadata"]
        try:
            await outside.cluster.delete(
                child["kind"], about["namespace"], about["name"], about["uid"]
            )
        except NotFound:
            continue  # Its kind is gone, and it with it.
        except ApiError as error:
            found.append(_kept(child["kind"], about["name"], error))
    wanted = [plan.adapters, *plan.objects]
    secrets = {
        each["metadata"]["name"] for each in wanted if each is not None and each["kind"] == "Secret"
    }
    for name in {names.registry_secret(meta), names.adapters_secret(meta)} - secrets:
        try:
            await _forget_credentials(outside, meta, name)
        except ApiError as error:
            found.append(_kept("Secret", name, error))
    return found


def _kept(kind: str, name: str, error: ApiError) -> Trouble:
    message = f"{kind} {name} is not wanted any more and could not be deleted: {error}"
    return Trouble(Fault(Reason.ApplyFailed, message), passing=passes(error), side=True)


async def _forget_credentials(outside: Outside, meta: Meta, name: str) -> None:
    """One look per process finds what one before it has left."""
    if outside.memory.secrets.get((meta.namespace, name)) == GONE:
        return
    secret = await outside.cluster.get("Secret", meta.namespace, name)
    if secret is not None and names.owned(secret, meta):
        await outside.cluster.delete("Secret", meta.namespace, name, secret["metadata"]["uid"])
    outside.memory.secrets[meta.namespace, name] = GONE


def _together(troubles: list[Trouble]) -> Applied:
    """The worst is told: one that will not pass by itself,
    then what serves, then what came first."""
    if not troubles:
        return Applied()
    worst = min(troubles, key=lambda each: (not each.fault.terminal, each.side))
    return Applied(
        worst.fault,
        turned=not any(each.turns for each in troubles),
        passing=all(each.passing for each in troubles),
    )
