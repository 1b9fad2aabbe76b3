"""One LLMDeployment: observe → plan → apply → report."""

from dataclasses import replace

from pydantic import ValidationError

from llm_operator import observe, plans
from llm_operator.cluster import Cluster, Refused
from llm_operator.crds import LLMDeploymentStatus
from llm_operator.observe import Outside
from llm_operator.plans import apikeys, conditions, faults, names
from llm_operator.plans.reasons import Reason
from llm_operator.reconcile import gates, keyfile, verdict
from llm_operator.reconcile.put import NameTaken, put
from llm_operator.reconcile.result import Done, Pace, Retry
from llm_operator.reconcile.status import report, stamp, tell
from llm_operator.state import Fault, HeldKey, Key, Manifest, Meta, Observed, Occurrence, Plan

WAITING_LOOK_SECONDS = 3.0
"""How often Events of a pod without containers are read: they come without the pod changing."""
DOWNLOAD_LOOK_SECONDS = 5.0
"""How often the status tells how far a download is."""


async def reconcile(key: Key, outside: Outside, pace: Pace) -> Done:
    """Bring one LLMDeployment's children to what its specification, as resolved, asks for."""
    resource = await outside.cluster.get(key.kind, key.namespace, key.name)
    if resource is None:
        outside.inventory.forget(key)
        outside.ledgers.pop(key, None)
        outside.key_files.pop(key, None)
        return Done(wake=await _all_keys(outside.cluster, key.namespace), gone=True)
    if "deletionTimestamp" in resource["metadata"]:
        # Garbage collection follows the owner references; creating anew here would never end.
        return Done(gone=True)
    resource = await _greet(outside, resource)
    try:
        observed = await observe.deployment(outside, resource)
    except ValidationError as error:
        return await _refuse(outside, resource, error, pace)
    observed = await gates.gather(outside, observed)
    async with outside.key_files[key]:
        # The keys as they are now: what was asked above may have taken long, and a revocation did not wait for it.
        observed = replace(observed, keys=await observe.held_keys(outside, observed.meta))
        plan = plans.deployment(observed, settle_seconds=pace.settle_seconds, now=outside.clock())
        refused, untold = await _let_in(outside, observed, plan)
    fault = await _apply(outside, observed, plan, refused) or untold
    await _report(outside, resource, observed, plan, fault)
    if fault is not None and not fault.terminal:
        raise Retry(fault.message)
    check = (Key("SecretCheck", key.namespace, key.name), pace.verify_seconds)
    told = verdict.due(outside, observed, plan.status) if fault is None else ()
    return Done(_next_look(observed, plan, fault, pace), _late_keys(observed), later=(check, *told))


async def check_secrets(key: Key, outside: Outside, pace: Pace) -> Done:
    """Have the Secrets of an LLMDeployment changed since they were written? They are not watched, so one GET asks."""
    meta = Meta("LLMDeployment", key.namespace, key.name, "", 0)
    for name in (names.keys_secret(meta), names.registry_secret(meta)):
        known = outside.secrets.get((key.namespace, name))
        live = await outside.cluster.get("Secret", key.namespace, name) if known else None
        if known and (live or {}).get("metadata", {}).get("resourceVersion") != known:
            outside.secrets.pop((key.namespace, name), None)
            return Done(wake=(meta.key,), gone=True)
    return Done(pace.verify_seconds)


async def _greet(outside: Outside, resource: Manifest) -> Manifest:
    """Say Unknown before anything slow: kstatus takes a resource without Ready for finished."""
    status = resource.get("status") or {}
    if status.get("observedGeneration") is not None:
        return resource
    meta = observe.meta_of(resource)
    first = LLMDeploymentStatus(
        observed_generation=meta.generation, conditions=conditions.first(meta.generation, outside.clock())
    )
    kept = {name: value for name, value in status.items() if name not in ("conditions", "observedGeneration")}
    merged = LLMDeploymentStatus.model_validate(kept | first.model_dump(mode="json", by_alias=True, exclude_none=True))
    await report(outside, resource, meta, merged)
    return {**resource, "status": merged.model_dump(mode="json", by_alias=True, exclude_none=True)}


async def _refuse(outside: Outside, resource: Manifest, error: ValidationError, pace: Pace) -> Done:
    meta = observe.meta_of(resource)
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    message = f"spec.{where}: {fault['msg']}; what runs is left as it is"
    before = LLMDeploymentStatus.model_validate(resource.get("status") or {})
    told = conditions.invalid(before.conditions, message, meta.generation, outside.clock())
    status = before.model_copy(update={"conditions": told, "observed_generation": meta.generation})
    if before.conditions != told:
        happened = (Occurrence("Warning", Reason.InvalidSpec, message),)
        await tell(outside.cluster, meta, happened, stamp(outside.clock()))
    await report(outside, resource, meta, status)
    return Done(pace.verify_seconds)


async def _let_in(outside: Outside, observed: Observed, plan: Plan) -> tuple[list[Fault], Fault | None]:
    """Write the key file before any other object. Why it was refused, and that a pod could not be told."""
    pods = [pod for each in observed.revisions.values() for pod in each.pods]
    try:
        return [], await keyfile.write(outside, observed.meta, plan.key_file, pods)
    except (NameTaken, Refused) as error:
        return [_refused(plan.key_file, error)], None


async def _apply(outside: Outside, observed: Observed, plan: Plan, found: list[Fault]) -> Fault | None:
    """Apply everything, then prune. Returns the first fault, one `found` before included; all else is applied still."""
    cluster = outside.cluster
    seen = {(child["kind"], child["metadata"]["name"]): child for child in observed.children}
    for manifest in plan.objects:
        try:
            await put(outside, observed.meta, manifest, seen.get((manifest["kind"], manifest["metadata"]["name"])))
        except (NameTaken, Refused) as error:
            found.append(_refused(manifest, error))
    if found:
        # A half-applied plan prunes nothing: what is not wanted may still be what serves.
        return min(found, key=lambda fault: not fault.terminal)
    for child in plan.delete:
        meta = child["metadata"]
        await cluster.delete(child["kind"], meta["namespace"], meta["name"], meta["uid"])
    await _forget_credentials(outside, observed.meta, plan)
    return None


def _refused(manifest: Manifest, error: NameTaken | Refused) -> Fault:
    if isinstance(error, NameTaken):
        return Fault(Reason.NameTaken, str(error), terminal=True)
    return Fault(Reason.ApplyFailed, f"{manifest['kind']} {manifest['metadata']['name']} was refused: {error}")


async def _forget_credentials(outside: Outside, meta: Meta, plan: Plan) -> None:
    name = names.registry_secret(meta)
    if any(o["kind"] == "Secret" and o["metadata"]["name"] == name for o in plan.objects):
        return
    outside.secrets.pop((meta.namespace, name), None)
    secret = await outside.cluster.get("Secret", meta.namespace, name)
    if secret is not None and names.owned(secret, meta):
        await outside.cluster.delete("Secret", meta.namespace, name, secret["metadata"]["uid"])


async def _report(outside: Outside, resource: Manifest, observed: Observed, plan: Plan, fault: Fault | None) -> None:
    now = outside.clock()
    happened = plan.occurrences
    if fault is not None:
        before = next((c for c in observed.status.conditions if c.type == "Applied"), None)
        known = before is not None and (before.reason, before.message) == (fault.reason, fault.message)
        happened = () if known else (Occurrence("Warning", fault.reason, fault.message),)
    await tell(outside.cluster, observed.meta, happened, stamp(now))
    await report(outside, resource, observed.meta, plans.after_apply(plan, observed, fault, now))


def _next_look(observed: Observed, plan: Plan, fault: Fault | None, pace: Pace) -> float | None:
    looks = [] if plan.requeue_seconds is None else [plan.requeue_seconds]
    if fault is not None:
        # Nobody tells us when somebody else's object goes away.
        looks.append(pace.verify_seconds)
    if observed.database_missing:
        looks.append(pace.verify_seconds)
    pods = [pod for each in observed.revisions.values() for pod in each.pods]
    if any(faults.waits_for_containers(pod) for pod in pods):
        looks.append(WAITING_LOOK_SECONDS)
    if any(faults.fetching(pod) for pod in pods):
        looks.append(DOWNLOAD_LOOK_SECONDS)
    return min(looks, default=None)


async def _all_keys(cluster: Cluster, namespace: str) -> tuple[Key, ...]:
    """Their status names this deployment; it is gone now."""
    return tuple(observe.meta_of(item).key for item in await cluster.list("ApiKey", namespace))


def _late_keys(observed: Observed) -> tuple[Key, ...]:
    """ApiKeys whose status is behind this deployment: it may be newer than they are, or its tiers have changed."""
    tiers = observed.spec.access.tier_names()

    def late(key: HeldKey) -> bool:
        told = any(condition.reason == Reason.TierUnknown for condition in key.status.conditions)
        unnamed = observed.meta.name not in (key.status.deployments or ())
        return unnamed or told == apikeys.knows_tier(key.spec, tiers)

    return tuple(key.meta.key for key in observed.keys if late(key))
