"""The key file of one LLMDeployment:
written as soon as its keys change, whatever else is slow or wrong.

A reconcile of the LLMDeployment asks the registry, pods and smoke prompts, which may take a minute,
and needs a whole specification. So changed keys are work of their own, with workers of their own.
Both write under one lock, each with the keys as they are then: neither brings back what the other
has taken away. ApiKeys whose status says something else than the pods were given are woken.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from llm_operator import keyring, observe
from llm_operator.crds import AccessSpec
from llm_operator.keyring import ReadKey
from llm_operator.memory import GONE
from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.plans.objects import keys
from llm_operator.plans.reasons import Reason
from llm_operator.ports.cluster import ApiError, Cluster, NotFound
from llm_operator.reconcile.applying import Trouble
from llm_operator.reconcile.failures import passes
from llm_operator.reconcile.put import NameTaken, NotApplied, put, refused
from llm_operator.reconcile.result import Done, Retry
from llm_operator.state import DigestedKey, Fault, Key, Manifest, Meta
from llm_runtime.contract import hash_key

KIND = "KeyFile"


@dataclass(frozen=True)
class Delivery:
    """What became of a key file."""

    trouble: Trouble | None = None
    """Why it was not written."""
    late: tuple[Key, ...] = ()
    """ApiKeys that have to say something else now."""


async def reconcile(key: Key, outside: Outside) -> Done:
    """Bring the keys in the file to those that open the deployment now;
    all else in it stays as it is.

    A file that is not there yet, or is somebody else's,
    is left to the LLMDeployment's own reconcile, which says so.
    """
    cluster = outside.cluster
    of_deployment = Key("LLMDeployment", key.namespace, key.name)
    resource = await cluster.seen(of_deployment.kind, key.namespace, key.name)
    if resource is None or "deletionTimestamp" in resource["metadata"]:
        return Done(gone=True)
    meta = observe.meta_of(resource)
    async with outside.memory.key_files[of_deployment]:
        before = await cluster.get("Secret", meta.namespace, names.keys_secret(meta))
        if before is None or not names.owned(before, meta):
            outside.memory.given.pop(of_deployment, None)
            return Done(gone=True)
        known, own = await asyncio.gather(
            keyring.api_keys(outside, meta.namespace), _operators(outside, meta)
        )
        digested = await keyring.digested(
            outside, meta, known, await keyring.given(outside, meta, before)
        )
        after = keys.with_keys(before, meta, _access(resource), (*digested, *own))
        delivery = await deliver(outside, meta, after, digested, known, before)
    if delivery.trouble is not None:
        raise Retry(delivery.trouble.fault.message, Done(wake=delivery.late, gone=True))
    # The Secret is written: a pod that can't be told has it within a minute or two.
    if of_deployment in outside.memory.untold:
        pods = await cluster.list("Pod", meta.namespace, f"{names.DEPLOYMENT_LABEL}={meta.name}")
        await tell_pods(outside, meta, after, pods)
    return Done(wake=delivery.late, gone=True)


def _access(resource: Manifest) -> AccessSpec:
    try:
        return AccessSpec.model_validate(resource["spec"].get("access") or {})
    except (ValidationError, AttributeError, KeyError):
        return AccessSpec()


async def _operators(outside: Outside, meta: Meta) -> tuple[DigestedKey, ...]:
    """The operator's own key, where there is one."""
    name = names.operator_key_secret(meta)
    if outside.memory.secrets.get((meta.namespace, name)) == GONE:
        return ()
    secret = await outside.cluster.get("Secret", meta.namespace, name)
    found = keys.issued(secret) if secret is not None and names.owned(secret, meta) else None
    return (keys.operator_key(meta, found[1], hash_key(found[0], meta.uid)),) if found else ()


async def deliver(
    outside: Outside,
    owner: Meta,
    secret: Manifest,
    digested: Iterable[DigestedKey],
    known: Iterable[ReadKey],
    live: Manifest | None = None,
) -> Delivery:
    """Write the key file, and note what the pods were given.
    `live`: the Secret as it was read a moment ago."""
    before = await keyring.given(outside, owner, live)
    found = None
    try:
        if live is None or live.get("data") != secret["data"]:
            await put(outside, owner, secret, live)
    except (NameTaken, ApiError) as error:
        found = Trouble(refused(secret, error), passing=passes(error))
        given = replace(before, trouble=found.fault.message) if before else None
    else:
        given = keys.given(secret, before, digested)
        if before is None or before.digest != given.digest:
            outside.memory.untold.add(owner.key)
    if given is not None:
        outside.memory.given[owner.key] = given
    return Delivery(found, keyring.late(known, owner, given))


async def deliver_adapters(
    outside: Outside, owner: Meta, secret: Manifest | None
) -> Trouble | None:
    """Write the Secret with the adapters,
    where there is to be one, and return why it was not written."""
    if secret is None:
        return None
    try:
        await put(outside, owner, secret)
    except (NotApplied, ApiError) as error:
        return Trouble(refused(secret, error), passing=passes(error))
    return None


async def tell_pods(
    outside: Outside, owner: Meta, secret: Manifest, pods: Iterable[Manifest]
) -> Trouble | None:
    """Tell the pods of the key file and of the adapters. Returns why the first pod can't be told,
    which then learns of it later.

    A pod whose annotations change gets its Secret volumes refreshed at once,
    not within the kubelet's minute.
    """
    adapters = outside.memory.secrets.get((owner.namespace, names.adapters_secret(owner)), GONE)
    digest = keys.digest(secret) + (f".{adapters.version}" if adapters.version else "")
    untold = [pod["metadata"]["name"] for pod in pods if keys.untold(pod, digest)]
    answers = await asyncio.gather(
        *(_tell(outside.cluster, owner.namespace, pod, digest) for pod in untold)
    )
    found = next((each for each in answers if each is not None), None)
    if found is None:
        outside.memory.untold.discard(owner.key)
    return found


async def _tell(cluster: Cluster, namespace: str, pod: str, digest: str) -> Trouble | None:
    try:
        await cluster.patch(
            "Pod", namespace, pod, {"metadata": {"annotations": {names.KEYS_ANNOTATION: digest}}}
        )
    except NotFound:
        return None
    except ApiError as error:
        message = (
            f"pod {pod} could not be told of changed keys, and sees them within a minute or two:"
            f" {error}"
        )
        return Trouble(Fault(Reason.ApplyFailed, message), passing=passes(error), side=True)
    return None
