"""The key file of one LLMDeployment: written as soon as its keys change, whatever else is slow or wrong.

A reconcile of the LLMDeployment asks the registry, pods and smoke prompts, which may take a minute, and needs a whole
specification. So changed keys are work of their own, with workers of their own. Both write under one lock, each with
the keys as they are then: neither brings back what the other has taken away.
"""

import asyncio
from collections.abc import Iterable

from llm_operator import observe
from llm_operator.cluster import Cluster, NotFound, Refused
from llm_operator.observe import Outside
from llm_operator.plans import keys, names
from llm_operator.plans.reasons import Reason
from llm_operator.reconcile.put import put
from llm_operator.reconcile.result import Done
from llm_operator.state import Fault, HeldKey, Key, Manifest, Meta
from llm_runtime.contract import hash_key, key_id_of

KIND = "KeyFile"


async def reconcile(key: Key, outside: Outside) -> Done:
    """Bring the keys in the file to those that open the deployment now; all else in it stays as it is.

    A file that is not there yet, or is somebody else's, is left to the LLMDeployment's own reconcile, which says so.
    """
    cluster, of_deployment = outside.cluster, Key("LLMDeployment", key.namespace, key.name)
    resource = await cluster.get(of_deployment.kind, key.namespace, key.name)
    if resource is None or "deletionTimestamp" in resource["metadata"]:
        return Done(gone=True)
    meta = observe.meta_of(resource)
    async with outside.key_files[of_deployment]:
        before, held, own, pods = await asyncio.gather(
            cluster.get("Secret", meta.namespace, names.keys_secret(meta)),
            observe.held_keys(outside, meta),
            _operators(outside, meta),
            cluster.list("Pod", meta.namespace, f"{names.DEPLOYMENT_LABEL}={meta.name}"),
        )
        if before is None or not names.owned(before, meta):
            return Done(gone=True)
        after = keys.with_keys(before, meta, (*held, *own))
        if after is not None and after["data"] != before["data"]:
            await write(outside, meta, after, pods, before)
    return Done(gone=True)


async def _operators(outside: Outside, meta: Meta) -> tuple[HeldKey, ...]:
    """The operator's own key, where there is one."""
    secret = await outside.cluster.get("Secret", meta.namespace, names.operator_key_secret(meta))
    key = keys.decode(secret, keys.API_KEY_FIELD) if secret is not None and names.owned(secret, meta) else None
    key_id = key_id_of(key) if key else None
    return (keys.operator_key(meta, key_id, hash_key(key, meta.uid)),) if key and key_id else ()


async def write(
    outside: Outside, owner: Meta, secret: Manifest, pods: Iterable[Manifest], live: Manifest | None = None
) -> Fault | None:
    """Apply the Secret, then tell the pods. Returns the first pod's refusal: it learns of it later, all others now.

    A pod whose annotations change gets its Secret volumes refreshed at once, not within the kubelet's minute.
    """
    await put(outside, owner, secret, live)
    digest = keys.digest(secret)
    untold = [pod["metadata"]["name"] for pod in pods if keys.untold(pod, digest)]
    answers = await asyncio.gather(*(_tell(outside.cluster, owner.namespace, pod, digest) for pod in untold))
    return next((fault for fault in answers if fault is not None), None)


async def _tell(cluster: Cluster, namespace: str, pod: str, digest: str) -> Fault | None:
    try:
        await cluster.patch("Pod", namespace, pod, {"metadata": {"annotations": {names.KEYS_ANNOTATION: digest}}})
    except NotFound:
        return None
    except Refused as error:
        told = f"pod {pod} could not be told of changed keys, and sees them within a minute or two: {error}"
        return Fault(Reason.ApplyFailed, told)
    return None
