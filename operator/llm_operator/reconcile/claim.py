"""Which installation of the operator works in a namespace:
the first that came, or the one that a person has written.

Two installations that watch the same namespace would undo each other's work: other connections and
images make other revisions. Keys and deployments of a namespace belong together, so one
installation has all of them. A ConfigMap says which; it is made with the first object, and outlives
restarts, upgrades and the operator itself.
"""

import logging

from llm_operator.observe import Outside, meta_of
from llm_operator.plans import names
from llm_operator.ports.cluster import Conflict, Refused
from llm_operator.reconcile.result import Done, Pace
from llm_operator.reconcile.status import stamp, tell
from llm_operator.state import Key, Manifest, Occurrence

log = logging.getLogger(__name__)
CONFIG_MAP = "llm-operator-installation"
FIELD = "installation"


async def elsewhere(outside: Outside, key: Key) -> str:
    """The other installation that the namespace belongs to;
    empty: it is ours, from now on if it was nobody's."""
    if not outside.installation:
        return ""
    live = await outside.cluster.seen("ConfigMap", key.namespace, CONFIG_MAP)
    if live is None and await _resource(outside, key) is not None:
        live = await _claimed(outside, key.namespace)
    holder = str(((live or {}).get("data") or {}).get(FIELD) or outside.installation)
    if holder != outside.installation:
        return holder
    outside.memory.elsewhere.pop(key, None)
    return ""


async def keep_off(outside: Outside, key: Key, holder: str, pace: Pace) -> Done:
    """Touch nothing, and say so once on the object:
    all else about it is for the other installation to say."""
    resource = await _resource(outside, key)
    outside.memory.forget(key)
    if resource is None or key.kind != resource["kind"]:
        outside.memory.elsewhere.pop(key, None)
        return Done(gone=True)
    if outside.memory.elsewhere.get(key) != holder:
        outside.memory.elsewhere[key] = holder
        occurrence = Occurrence(
            "Warning", "OtherInstallation", _words(outside, key.namespace, holder), once=True
        )
        await tell(outside.cluster, meta_of(resource), (occurrence,), stamp(outside.clock()))
    return Done(pace.verify_seconds)


async def _resource(outside: Outside, key: Key) -> Manifest | None:
    """The custom resource that a key is about; None where it is gone or going."""
    kind = "ApiKey" if key.kind == "ApiKey" else "LLMDeployment"
    found = await outside.cluster.seen(kind, key.namespace, key.name)
    return None if found is None or "deletionTimestamp" in found["metadata"] else found


async def _claimed(outside: Outside, namespace: str) -> Manifest | None:
    labels = {
        "app.kubernetes.io/managed-by": names.MANAGED_BY,
        "app.kubernetes.io/component": FIELD,
    }
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": namespace, "labels": labels},
        "data": {FIELD: outside.installation},
    }
    try:
        return await outside.cluster.create(manifest)
    except Conflict:
        # Another came in between, or a worker of ours.
        return await outside.cluster.get("ConfigMap", namespace, CONFIG_MAP)
    except Refused as error:
        # A quota, a policy, a namespace that is deleted:
        # no reason to leave what is there without an operator.
        log.warning(
            "namespace %s could not be claimed for %s: %s", namespace, outside.installation, error
        )
        return None


def _words(outside: Outside, namespace: str, holder: str) -> str:
    own = outside.installation
    change = f'{{"data":{{"{FIELD}":"{outside.installation}"}}}}'
    return (
        f"namespace {namespace} belongs to the operator of {holder} (namespace/lease); that of"
        f" {own} keeps off. To move it there: kubectl -n {namespace} patch configmap {CONFIG_MAP}"
        f" --type merge -p '{change}'"
    )
