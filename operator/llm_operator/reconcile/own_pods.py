"""Which pods certainly belong to a revision: only they may be given secrets, and only their figures
are believed."""

from collections.abc import Iterable

from llm_operator.observe import Outside
from llm_operator.state import Manifest, Observed


async def own_pods(
    outside: Outside, observed: Observed, revision: str, pods: Iterable[Manifest]
) -> list[Manifest]:
    """The pods that the revision's Deployment has made. Raises ApiError.

    Labels alone are not enough: anybody's pod may have them, and these pods are given a key and
    judge the candidate.
    """
    children = observed.revisions.get(revision)
    deployment = children.deployment if children else None
    made = dict[str, str]()
    """By uid of a ReplicaSet: the uid of the Deployment that made it."""
    found = []
    for pod in pods:
        by = _controller(pod)
        if deployment is None or by is None or by["kind"] != "ReplicaSet":
            continue
        if by["uid"] not in made:
            live = await outside.cluster.get("ReplicaSet", observed.meta.namespace, by["name"])
            above = _controller(live) if live and live["metadata"]["uid"] == by["uid"] else None
            made[by["uid"]] = above["uid"] if above else ""
        if made[by["uid"]] == deployment["metadata"]["uid"]:
            found.append(pod)
    return found


def _controller(manifest: Manifest) -> Manifest | None:
    references: list[Manifest] = manifest["metadata"].get("ownerReferences") or []
    return next((each for each in references if each.get("controller")), None)


async def own_ready_pods(outside: Outside, observed: Observed, revision: str) -> list[Manifest]:
    """The ready pods that the revision's Deployment has made. Raises ApiError."""
    children = observed.revisions.get(revision)
    return await own_pods(outside, observed, revision, children.ready_pods if children else ())
