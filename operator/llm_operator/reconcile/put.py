"""Applies one object of a plan, unless its name is somebody else's."""

from llm_operator.cluster import ApiError
from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.plans.reasons import Reason
from llm_operator.state import Fault, Manifest, Meta


class NameTaken(Exception):
    """A child's name belongs to an object that is not ours."""

    reason = Reason.NameTaken


class SecretReserved(NameTaken):
    """The specification names a Secret of the operator's own."""

    reason = Reason.SecretReserved


class SecretUnfit(NameTaken):
    """The specification names a Secret with keys that must not be where it is read."""

    reason = Reason.InvalidSpec


def taken(kind: str, namespace: str, name: str) -> NameTaken:
    """For its reader: whose object it is, and what can be done."""
    return NameTaken(
        f"{kind} {name} exists and belongs to somebody else: rename or delete it "
        f"(kubectl -n {namespace} get {kind.lower()} {name} -o yaml), or rename this LLMDeployment"
    )


async def put(outside: Outside, owner: Meta, manifest: Manifest, live: Manifest | None = None) -> None:
    """Force takes fields from people, never objects; what was ours and lost its owner, as by a restore, is adopted.

    `live` is the object as it was seen; None: it is read now.
    """
    cluster, kind, meta = outside.cluster, manifest["kind"], manifest["metadata"]
    live = live or await cluster.get(kind, meta["namespace"], meta["name"])
    if live is not None and not names.ours(live, owner):
        raise taken(kind, meta["namespace"], meta["name"])
    if live is not None and manifest.get("immutable") and live.get("data") != manifest["data"]:
        await cluster.delete(kind, meta["namespace"], meta["name"], live["metadata"]["uid"])
    elif live is not None:
        # With the uid an update never brings back what was deleted since it was read: that is a Conflict.
        manifest = {**manifest, "metadata": {**meta, "uid": live["metadata"]["uid"]}}
    live = await cluster.apply(manifest)
    if kind == "Secret":
        outside.secrets[meta["namespace"], meta["name"]] = live["metadata"]["resourceVersion"]


def refused(manifest: Manifest, error: NameTaken | ApiError) -> Fault:
    """Why an object of a plan is not there as planned. What the API server says may pass, a taken name does not."""
    if isinstance(error, NameTaken):
        return Fault(error.reason, str(error), terminal=True)
    return Fault(Reason.ApplyFailed, f"{manifest['kind']} {manifest['metadata']['name']} was refused: {error}")
