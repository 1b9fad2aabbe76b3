"""One LLMDeployment: observe → plan → apply → report."""

from dataclasses import replace

from pydantic import ValidationError

from llm_operator import keyring, observe, plans
from llm_operator.crds import LLMDeploymentStatus
from llm_operator.memory import GONE
from llm_operator.observe import Outside
from llm_operator.plans import apikeys, names, policy
from llm_operator.plans.reasons import Reason
from llm_operator.plans.status import autoscaling, faults, findings
from llm_operator.ports.cluster import Cluster
from llm_operator.reconcile import evaluation, evidence, failures, keyfile, verdict
from llm_operator.reconcile.applying import apply
from llm_operator.reconcile.result import Done, Pace, Retry
from llm_operator.reconcile.status import report, stamp, tell
from llm_operator.state import DigestedKey, Fault, Key, Manifest, Meta, Observed, Occurrence, Plan

WAITING_LOOK_SECONDS = 3.0
"""How often Events of a pod without containers are read: they come without the pod changing."""
SECRET_LOOK_SECONDS = 5.0
"""How often a Secret that spec.database names is looked for: Secrets are not watched."""
NODE_LOOK_SECONDS = 20.0
"""How often a pod that does not get ready is looked at:
its node may have fallen silent, which changes no pod."""
DOWNLOAD_LOOK_SECONDS = 5.0
"""How often the status tells how far a download is."""


async def reconcile(key: Key, outside: Outside, pace: Pace) -> Done:
    """Bring one LLMDeployment's children to what its specification, as resolved, asks for."""
    resource = await outside.cluster.seen(key.kind, key.namespace, key.name)
    if resource is None:
        outside.memory.forget(key)
        await evaluation.forget(outside, Meta(key.kind, key.namespace, key.name, "", 0))
        keys = await _all_keys(outside.cluster, key.namespace)
        return Done(wake=keys, later=verdict.deleted(outside, key), gone=True)
    if "deletionTimestamp" in resource["metadata"]:
        # Garbage collection follows the owner references; creating anew here would never end.
        await evaluation.forget(outside, observe.meta_of(resource))
        return Done(gone=True)
    try:
        resource = await _greet(outside, resource)
        return await _bring(key, outside, resource, pace)
    except Retry:
        raise
    except Exception as error:
        await failures.tell_unfinished(outside, resource, LLMDeploymentStatus, error)
        raise


async def _bring(key: Key, outside: Outside, resource: Manifest, pace: Pace) -> Done:
    try:
        observed = await observe.deployment(outside, resource)
    except ValidationError as error:
        return await _refuse(outside, resource, _unreadable(error))
    given = await keyring.given(outside, observed.meta)
    observed = replace(observed, adapters_beside_keys=given is not None and given.adapters)
    if refusal := policy.refusal(observed, outside.policy):
        return await _refuse(outside, resource, refusal)
    observed = await evidence.gather(outside, observed)
    async with outside.memory.key_files[key]:
        # The keys as they are now: what was asked above may have taken long,
        # and a revocation did not wait for it.
        known = await keyring.api_keys(outside, key.namespace)
        given = await keyring.given(outside, observed.meta)
        observed = replace(
            observed, keys=await keyring.digested(outside, observed.meta, known, given)
        )
        plan = plans.deployment(observed, settle_seconds=pace.settle_seconds, now=outside.clock())
        delivery = await keyfile.deliver(
            outside, observed.meta, plan.key_file, observed.keys, known
        )
    troubles = [
        delivery.trouble,
        await keyfile.deliver_adapters(outside, observed.meta, plan.adapters),
    ]
    if delivery.trouble is None:
        pods = [pod for each in observed.revisions.values() for pod in each.pods]
        troubles.append(await keyfile.tell_pods(outside, observed.meta, plan.key_file, pods))
    applied = await apply(outside, observed, plan, [each for each in troubles if each is not None])
    fault = applied.fault
    late = tuple(dict.fromkeys((*delivery.late, *_late_keys(observed))))
    if not failures.lasts(outside, key, applied.passing):
        raise Retry(fault.message if fault else "", Done(wake=late))
    if not applied.passing:
        outside.memory.unwell.discard(key)
    status = plans.after_apply(plan, observed, applied, outside.clock())
    await _report(outside, resource, observed, plan, status, fault)
    check = (Key("SecretCheck", key.namespace, key.name), pace.verify_seconds)
    later = (check, *verdict.due(outside, observed, status))
    done = Done(_next_look(observed, plan, fault, pace), late, later)
    if fault is not None and not fault.terminal:
        raise Retry(fault.message, done)
    return done


async def check_secrets(key: Key, outside: Outside, pace: Pace) -> Done:
    """Wake the LLMDeployment if its Secrets were changed since they were written.

    Secrets are not watched, so each is read once."""
    meta = Meta("LLMDeployment", key.namespace, key.name, "", 0)
    for name in (names.keys_secret(meta), names.registry_secret(meta), names.adapters_secret(meta)):
        known = outside.memory.secrets.get((key.namespace, name), GONE).version
        live = await outside.cluster.get("Secret", key.namespace, name) if known else None
        if known and (live or {}).get("metadata", {}).get("resourceVersion") != known:
            outside.memory.secrets.pop((key.namespace, name), None)
            outside.memory.given.pop(meta.key, None)
            return Done(wake=(meta.key,), gone=True)
    return Done(pace.verify_seconds)


async def _greet(outside: Outside, resource: Manifest) -> Manifest:
    """Say Unknown before anything slow: kstatus takes a resource without Ready for finished."""
    status = resource.get("status") or {}
    if status.get("observedGeneration") is not None:
        return resource
    meta = observe.meta_of(resource)
    for name in names.secrets(meta):
        # A new object has no Secrets, so none is read. Creating one fails where its name is taken.
        outside.memory.secrets.setdefault((meta.namespace, name), GONE)
    first = LLMDeploymentStatus(
        observed_generation=meta.generation,
        conditions=findings.first(meta.generation, outside.clock()),
    )
    kept = observe.status_of(LLMDeploymentStatus, resource)
    merged = kept.model_copy(
        update={"conditions": first.conditions, "observed_generation": first.observed_generation}
    )
    await report(outside, resource, meta, merged)
    return {**resource, "status": merged.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _unreadable(error: ValidationError) -> Fault:
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"])
    return Fault(Reason.InvalidSpec, f"spec.{where}: {found['msg']}", terminal=True)


async def _refuse(outside: Outside, resource: Manifest, fault: Fault) -> Done:
    """Report a refusal once. Only a changed specification, which causes an event, or another
    configuration mends it."""
    meta = observe.meta_of(resource)
    message = f"{fault.message}; what runs is left as it is"
    before = observe.status_of(LLMDeploymentStatus, resource)
    verdicts = findings.invalid(
        before.conditions, message, meta.generation, outside.clock(), fault.reason
    )
    status = before.model_copy(
        update={"conditions": verdicts, "observed_generation": meta.generation}
    )
    if before.conditions != verdicts:
        happened = (Occurrence("Warning", fault.reason, message),)
        await tell(outside.cluster, meta, happened, stamp(outside.clock()))
    await report(outside, resource, meta, status)
    return Done()


async def _report(
    outside: Outside,
    resource: Manifest,
    observed: Observed,
    plan: Plan,
    status: LLMDeploymentStatus,
    fault: Fault | None,
) -> None:
    now = outside.clock()
    happened = plan.occurrences if plans.recorded(plan, status) else ()
    if fault is not None:
        before = next((c for c in observed.status.conditions if c.type == "Applied"), None)
        known = before is not None and (before.reason, before.message) == (
            fault.reason,
            fault.message,
        )
        happened = (
            *happened,
            *(() if known else (Occurrence("Warning", fault.reason, fault.message),)),
        )
    await tell(outside.cluster, observed.meta, happened, stamp(now))
    await report(outside, resource, observed.meta, status)


def _next_look(observed: Observed, plan: Plan, fault: Fault | None, pace: Pace) -> float | None:
    looks = [] if plan.requeue_seconds is None else [plan.requeue_seconds]
    if fault is not None and fault.reason != Reason.ChildInvalid:
        # Nobody tells us when somebody else's object goes away.
        looks.append(pace.verify_seconds)
    if observed.database_missing:
        looks.append(min(SECRET_LOOK_SECONDS, pace.verify_seconds))
    pods = [pod for each in observed.revisions.values() for pod in each.pods]
    if autoscaling.unwatched(observed):
        looks.append(pace.verify_seconds)
    if any(faults.waits_for_containers(pod) for pod in pods):
        looks.append(WAITING_LOOK_SECONDS)
    if any(faults.hindered(pod) for pod in pods):
        looks.append(NODE_LOOK_SECONDS)
    if any(faults.fetching(pod) for pod in pods):
        looks.append(DOWNLOAD_LOOK_SECONDS)
    return min(looks, default=None)


async def _all_keys(cluster: Cluster, namespace: str) -> tuple[Key, ...]:
    """All ApiKeys of the namespace: their status may name a deployment that is gone now."""
    return tuple(each.key for each in await cluster.read("ApiKey", namespace, observe.meta_of))


def _late_keys(observed: Observed) -> tuple[Key, ...]:
    """ApiKeys whose status is behind this deployment:
    it may be newer than they are, or its tiers have changed."""
    tiers = observed.spec.access.tier_names()

    def late(key: DigestedKey) -> bool:
        tier_unknown = any(
            condition.reason == Reason.TierUnknown for condition in key.status.conditions
        )
        unnamed = observed.meta.name not in (key.status.deployments or ())
        return unnamed or tier_unknown == apikeys.knows_tier(key.spec, tiers)

    return tuple(key.meta.key for key in observed.keys if late(key))
