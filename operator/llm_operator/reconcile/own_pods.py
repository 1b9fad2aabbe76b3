"""Which pods are surely a revision's own: what they are given and what they say matters."""

from llm_operator.observe import Outside
from llm_operator.plans.status import faults
from llm_operator.state import Manifest, Observed


async def own_pods(outside: Outside, observed: Observed, revision: str, most: int) -> list[Manifest]:
    """Up to `most` ready pods that the revision's Deployment has made. Raises ApiError.

    Anybody's pod may have its labels, and these are given a key and judge the candidate.
    """
    children = observed.revisions.get(revision)
    deployment = children.deployment if children else None
    found: list[Manifest] = []
    for pod in children.pods if children and deployment else ():
        by = _controller(pod)
        if len(found) == most or not faults.ready(pod) or by is None or by["kind"] != "ReplicaSet":
            continue
        made = await outside.cluster.get("ReplicaSet", observed.meta.namespace, by["name"])
        made_by = _controller(made) if made and made["metadata"]["uid"] == by["uid"] else None
        if deployment is not None and made_by is not None and made_by["uid"] == deployment["metadata"]["uid"]:
            found.append(pod)
    return found


def _controller(manifest: Manifest) -> Manifest | None:
    references: list[Manifest] = manifest["metadata"].get("ownerReferences") or []
    return next((each for each in references if each.get("controller")), None)
