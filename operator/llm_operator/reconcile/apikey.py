"""One ApiKey: issue its key once, keep its Secret, tell its deployments."""

import secrets
import string
from collections.abc import Sequence

from pydantic import ValidationError

from llm_operator import keyring, observe
from llm_operator.crds import ApiKeyStatus, Condition
from llm_operator.observe import Outside
from llm_operator.plans import apikeys, names
from llm_operator.plans.objects import keys
from llm_operator.plans.reasons import Reason
from llm_operator.ports.cluster import ApiError, Conflict
from llm_operator.reconcile import failures, keyfile
from llm_operator.reconcile.put import update
from llm_operator.reconcile.result import Done, Pace, Retry
from llm_operator.reconcile.status import report, stamp, tell
from llm_operator.state import Fault, Key, Manifest, ObservedKey, Occurrence
from llm_runtime.contract import KEY_SECRET_LENGTH, format_key, key_id_of

_BASE62 = string.ascii_letters + string.digits
_ID_LENGTH = 10
LOOK_SECONDS = 5.0
"""How often an ApiKey that can't be read is looked at while pods still know it."""
TOLD = (
    Reason.SecretNameTaken,
    Reason.ApplyFailed,
    Reason.InvalidSpec,
    Reason.Delivering,
    Reason.KeyFileFull,
)
"""Reasons that become an Event."""


async def reconcile(key: Key, outside: Outside, pace: Pace) -> Done:
    """Make sure that the key exists exactly once and that every deployment that it opens knows
    it."""
    resource = await outside.cluster.seen(key.kind, key.namespace, key.name)
    if resource is None or "deletionTimestamp" in resource["metadata"]:
        outside.memory.forget(key)
        return Done(wake=await _everyone(outside, key.namespace), gone=True)
    try:
        return await _bring(outside, resource, pace)
    except Retry:
        raise
    except Exception as error:
        await failures.tell_unfinished(outside, resource, ApiKeyStatus, error)
        raise


async def _bring(outside: Outside, resource: Manifest, pace: Pace) -> Done:
    try:
        observed = await keyring.api_key(outside, resource)
    except ValidationError as error:
        return await _refuse(outside, resource, error, pace)
    name = apikeys.secret_name(observed.meta, observed.spec)
    try:
        secret, issued, happened = await _ensure(outside, observed, name)
        fault = _taken(observed, name) if secret is None else None
    except ApiError as error:
        if not failures.lasts(outside, observed.meta.key, failures.passes(error)):
            raise Retry(str(error)) from error
        # The pods keep what they know: a key is void when its Secret is gone, not when the API
        # server is out of order.
        secret = observed.secret
        issued = observed.status.issued_at
        happened = ()
        fault = Fault(Reason.ApplyFailed, f"Secret {name} was refused: {error}")
    value = keys.decode(secret, keys.API_KEY_FIELD) if secret else None
    status = apikeys.status(observed, name, key_id_of(value) if value else None, issued, fault)
    await tell(
        outside.cluster,
        observed.meta,
        (*happened, *_news(observed.status, status)),
        stamp(observed.now),
    )
    await report(outside, resource, observed.meta, status)
    # Every change of the specification changes the status, if only its observedGeneration.
    changed = _identity(status) != _identity(observed.status)
    wake = (
        _concerned(observed, status.deployments or ()) if changed else _unwritten(observed, status)
    )
    if fault is not None and not fault.terminal:
        raise Retry(fault.message, Done(wake=wake))
    outside.memory.unwell.discard(observed.meta.key)
    return Done(_next_look(observed, pace), wake)


async def _refuse(outside: Outside, resource: Manifest, error: ValidationError, pace: Pace) -> Done:
    """Report a specification that can't be read, on this ApiKey alone. Such a key opens nothing."""
    meta = observe.meta_of(resource)
    before = observe.status_of(ApiKeyStatus, resource)
    metas = await outside.cluster.read("LLMDeployment", meta.namespace, observe.meta_of)
    concerned = [each for each in metas if each.name in (before.deployments or ())]
    given = await keyring.all_given(outside, concerned)
    taking = [name for name, each in given.items() if each.record(meta)]
    status = apikeys.invalid(before, meta, apikeys.unreadable(error), taking, outside.clock())
    await tell(outside.cluster, meta, _news(before, status), stamp(outside.clock()))
    await report(outside, resource, meta, status)
    wake = tuple(Key(keyfile.KIND, meta.namespace, name) for name in taking)
    return Done(LOOK_SECONDS if taking else pace.verify_seconds, wake)


def _ready(status: ApiKeyStatus) -> Condition:
    return next(each for each in status.conditions if each.type == "Ready")


def _identity(status: ApiKeyStatus) -> tuple[object, ...]:
    """The parts of the status that key files are made from: all but the conditions."""
    return status.observed_generation, status.prefix, status.secret_name, status.deployments


def _news(before: ApiKeyStatus, after: ApiKeyStatus) -> tuple[Occurrence, ...]:
    """A fault that was not told before."""
    known = {(each.type, each.status, each.reason) for each in before.conditions}
    ready = _ready(after)
    event = (
        ready.reason in TOLD
        and ready.status == "False"
        and ("Ready", "False", ready.reason) not in known
    )
    return (Occurrence("Warning", ready.reason, ready.message),) if event else ()


async def _ensure(
    outside: Outside, observed: ObservedKey, name: str
) -> tuple[Manifest | None, str | None, tuple[Occurrence, ...]]:
    """The Secret with the key, the time of its issue, and Events.
    The Secret is None where somebody else's has its name."""
    meta = observed.meta
    status = observed.status
    if observed.secret is not None:
        mine = names.ours(observed.secret, meta)
        value = keys.decode(observed.secret, keys.API_KEY_FIELD) or ""
        if mine and key_id_of(value):
            if not names.owned(observed.secret, meta):
                secret = await update(
                    outside.cluster, meta, keys.issued_secret(meta, name, value), observed.secret
                )
                occurrence = Occurrence(
                    "Normal",
                    "KeyAdopted",
                    f"Secret {name} was this ApiKey's before: its key goes on",
                )
                return secret, secret["metadata"].get("creationTimestamp"), (occurrence,)
            await _leave_old(outside, observed, name)
            return (
                observed.secret,
                status.issued_at or observed.secret["metadata"].get("creationTimestamp"),
                (),
            )
        if not mine:
            return None, None, ()
        # Ours but emptied by hand: it can't be told from a deleted one.
        await outside.cluster.delete(
            "Secret", meta.namespace, name, observed.secret["metadata"]["uid"]
        )
    moved = await _moved(outside, observed, name)
    # Create-only: of two writers, or of a crash and its repetition,
    # one key wins and the other is never used.
    try:
        secret = await outside.cluster.create(keys.issued_secret(meta, name, moved or new_key()))
    except Conflict:
        secret = await outside.cluster.get("Secret", meta.namespace, name) or {}
        return (secret if names.owned(secret, meta) else None), stamp(observed.now), ()
    if moved:
        await _leave_old(outside, observed, name)
        return (
            secret,
            status.issued_at,
            (Occurrence("Normal", "KeyMoved", f"the key is in Secret {name} now"),),
        )
    return secret, stamp(observed.now), (_issued(observed, name),)


def _issued(observed: ObservedKey, name: str) -> Occurrence:
    if observed.status.prefix is None:
        return Occurrence(
            "Normal", "KeyIssued", f"Secret {name} holds the key under {keys.API_KEY_FIELD}"
        )
    return Occurrence(
        "Warning",
        "KeyReissued",
        f"Secret {name} was deleted: it holds a new key now and {observed.status.prefix}… is void",
    )


async def _moved(outside: Outside, observed: ObservedKey, name: str) -> str | None:
    """The key from the Secret that the status names, when spec.secretName has changed since."""
    before = observed.status.secret_name
    if before is None or before == name:
        return None
    secret = await outside.cluster.get("Secret", observed.meta.namespace, before)
    return (
        keys.decode(secret, keys.API_KEY_FIELD)
        if secret and names.owned(secret, observed.meta)
        else None
    )


async def _leave_old(outside: Outside, observed: ObservedKey, name: str) -> None:
    before = observed.status.secret_name
    if before is None or before == name:
        return
    secret = await outside.cluster.get("Secret", observed.meta.namespace, before)
    if secret is not None and names.owned(secret, observed.meta):
        await outside.cluster.delete(
            "Secret", observed.meta.namespace, before, secret["metadata"]["uid"]
        )


def new_key() -> str:
    """A key that nobody has had before."""

    def base62(length: int) -> str:
        return "".join(secrets.choice(_BASE62) for _ in range(length))

    return format_key(base62(_ID_LENGTH), base62(KEY_SECRET_LENGTH))


def _taken(observed: ObservedKey, name: str) -> Fault:
    return Fault(
        Reason.SecretNameTaken,
        f"Secret {name} exists and is not this ApiKey's: write another spec.secretName, or delete"
        " that Secret",
        terminal=True,
    )


def _next_look(observed: ObservedKey, pace: Pace) -> float:
    expires = observed.spec.expires_at
    left = (expires - observed.now).total_seconds() if expires else pace.verify_seconds
    return min(pace.verify_seconds, max(1.0, left)) if left > 0 else pace.verify_seconds


def _concerned(observed: ObservedKey, matched: tuple[str, ...]) -> tuple[Key, ...]:
    """Deployments that take the key, and those that took it before."""
    before = observed.status.deployments or ()
    here = {d.name for d in observed.deployments}
    return _both(observed.meta.namespace, sorted({*matched, *before} & here))


def _unwritten(observed: ObservedKey, status: ApiKeyStatus) -> tuple[Key, ...]:
    """Key files that have still to be written. One that could not be is tried again by itself."""
    behind = apikeys.deployments(observed, status.prefix, Reason.Delivering)
    quiet = [name for name in behind if not observed.given[name].trouble]
    return tuple(Key(keyfile.KIND, observed.meta.namespace, name) for name in quiet)


async def _everyone(outside: Outside, namespace: str) -> tuple[Key, ...]:
    """Wake every deployment of the namespace, because a deleted key no longer says which ones it
    opened."""
    metas = await outside.cluster.read("LLMDeployment", namespace, observe.meta_of)
    return _both(namespace, [each.name for each in metas])


def _both(namespace: str, deployments: Sequence[str]) -> tuple[Key, ...]:
    """Keys of the deployments' key files, which wait for nothing, and then of the deployments,
    because a key file may not be there yet."""
    kinds = (keyfile.KIND, "LLMDeployment")
    return tuple(Key(kind, namespace, name) for kind in kinds for name in deployments)
