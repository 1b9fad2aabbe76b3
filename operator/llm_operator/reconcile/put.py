"""Applies one object of a plan, unless an object of that name belongs to somebody else."""

from llm_operator.memory import GONE, Written
from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.plans.reasons import Reason
from llm_operator.ports.cluster import ApiError, Cluster, Conflict, Invalid
from llm_operator.reconcile.needless import as_applied, digest, needless, to_create
from llm_operator.state import Fault, Manifest, Meta

TRIES = 5
"""Attempts at one update while others' writes come between."""


class NotApplied(Exception):
    """An object of a plan that must not be applied, and why: `reason` is a condition's."""

    reason: Reason


class NameTaken(NotApplied):
    """A child's name belongs to an object that is not ours."""

    reason = Reason.NameTaken


class SecretReserved(NotApplied):
    """The specification names a Secret of the operator's own."""

    reason = Reason.SecretReserved


class SecretUnfit(NotApplied):
    """The specification names a Secret with keys that must not be where it is read."""

    reason = Reason.InvalidSpec


def taken(kind: str, namespace: str, name: str) -> NameTaken:
    """For its reader: whose object it is, and what can be done."""
    return NameTaken(
        f"{kind} {name} exists and belongs to somebody else: rename or delete it "
        f"(kubectl -n {namespace} get {kind.lower()} {name} -o yaml), or rename this LLMDeployment"
    )


async def put(
    outside: Outside, owner: Meta, manifest: Manifest, live: Manifest | None = None
) -> None:
    """Create one object, or change the one that is there. Force takes fields from people, but never
    an object from another owner: what was ours and lost its owner reference, as by a restore, is
    adopted.

    `live` is the object as it was seen; None where none was. Raises Conflict where it, or its
    owner, is another now.
    """
    cluster = outside.cluster
    kind = manifest["kind"]
    meta = manifest["metadata"]
    wanted = digest(manifest) if kind == "Secret" else ""
    if wanted and live is None:
        before = outside.memory.secrets.get((meta["namespace"], meta["name"]))
        if before is not None and before.digest == wanted:
            return  # Whether somebody has changed it since is asked by `check_secrets`.
        if before != GONE:  # Secrets are not watched.
            live = await cluster.get(kind, meta["namespace"], meta["name"])
    applied = None if live is not None else await _created(cluster, manifest)
    if applied is None:
        live = live or await cluster.get(kind, meta["namespace"], meta["name"])
        applied = await _brought(cluster, owner, manifest, live)
    if kind == "Secret":
        # An apply leaves others' fields.
        # A pod that mounts the Secret, or reads it by name, would take them for ours.
        if others := (applied.get("data") or {}).keys() - manifest["data"].keys():
            seen = {"resourceVersion": applied["metadata"]["resourceVersion"]}
            none: Manifest = {"metadata": seen, "data": dict.fromkeys(sorted(others))}
            applied = await cluster.patch(kind, meta["namespace"], meta["name"], none)
        version = applied["metadata"]["resourceVersion"]
        outside.memory.secrets[meta["namespace"], meta["name"]] = Written(version, wanted)


async def _created(cluster: Cluster, manifest: Manifest) -> Manifest | None:
    """The object, made; None where there is one of its name. An apply would take that over."""
    try:
        return await cluster.create(to_create(manifest))
    except Conflict:
        return None


async def _brought(
    cluster: Cluster, owner: Meta, manifest: Manifest, live: Manifest | None
) -> Manifest:
    """The object that has the name, changed to what it is to be."""
    kind = manifest["kind"]
    meta = manifest["metadata"]
    if live is None:
        raise Conflict(f"{kind} {meta['name']} was there a moment ago, and is gone")
    if not names.ours(live, owner):
        raise taken(kind, meta["namespace"], meta["name"])
    if _fixed(live, manifest):
        await cluster.delete(kind, meta["namespace"], meta["name"], live["metadata"]["uid"])
        return await cluster.create(to_create(manifest))
    if names.owned(live, owner) and needless(manifest, live):
        return live
    return await update(cluster, owner, manifest, live)


def _fixed(live: Manifest, manifest: Manifest) -> bool:
    """Whether the live object differs from the planned one in what no write can change: its type,
    or the data of an immutable object.

    The operator makes no Secret immutable, because its keys could not be revoked any more.
    """
    immutable = manifest.get("immutable") or live.get("immutable")
    kind = manifest.get("type")
    return (
        bool(immutable and live.get("data") != manifest["data"]) or live.get("type", kind) != kind
    )


async def update(cluster: Cluster, owner: Meta, manifest: Manifest, live: Manifest) -> Manifest:
    """Apply to what is there, and never give an owner back that was taken away.

    `kubectl delete --cascade=orphan` takes the owner from each child and then deletes it. A child
    that named it again would be deleted, too. The resourceVersion keeps a write that is on its way
    off a child that was changed meanwhile, and the uid off another one of its name.
    """
    kind = manifest["kind"]
    meta = manifest["metadata"]
    for _ in range(TRIES):
        if not names.owned(live, owner):
            await _adoptable(cluster, owner)
        seen = {name: live["metadata"][name] for name in ("uid", "resourceVersion")}
        try:
            if (fields := as_applied(live)) is not None:
                change = {"metadata": {**seen, "managedFields": fields}}
                live = await cluster.patch(kind, meta["namespace"], meta["name"], change)
                seen["resourceVersion"] = live["metadata"]["resourceVersion"]
            return await cluster.apply({**manifest, "metadata": {**meta, **seen}})
        except Conflict as error:
            refusal = error
        # A Deployment's status changes all the time.
        again = await cluster.get(kind, meta["namespace"], meta["name"])
        if again is None or again["metadata"]["uid"] != seen["uid"] or not names.ours(again, owner):
            break
        live = again
    raise refusal


async def _adoptable(cluster: Cluster, owner: Meta) -> None:
    """Raises Conflict where the owner is gone or going: what it has lost is not to come back to it.

    To be asked after the child was read: one that has just lost its owner is then told from one
    that never had it.
    """
    found = await cluster.get(owner.kind, owner.namespace, owner.name)
    if (
        found is None
        or found["metadata"]["uid"] != owner.uid
        or "deletionTimestamp" in found["metadata"]
    ):
        raise Conflict(
            f"{owner.kind} {owner.name} is being deleted: what it leaves stays without an owner"
        )


def refused(manifest: Manifest, error: NotApplied | ApiError) -> Fault:
    """Why an object of a plan is not there as planned.

    Our own reasons do not pass, nor does an invalid object; whatever else the API server says may.
    """
    if isinstance(error, NotApplied):
        return Fault(error.reason, str(error), terminal=True)
    message = f"{manifest['kind']} {manifest['metadata']['name']} was refused: {error}"
    if isinstance(error, Invalid):
        return Fault(
            Reason.ChildInvalid,
            f"{message}; change what the specification says about it",
            terminal=True,
        )
    return Fault(Reason.ApplyFailed, message)
