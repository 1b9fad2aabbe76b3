"""Looks at keys: the ApiKeys of a namespace,
which of them open a deployment, and what its pods were given.

What can't be read concerns the one object that it is about.
Whatever it is, the others are given and taken away.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from llm_operator.crds import AccessSpec, ApiKeySpec, ApiKeyStatus
from llm_operator.memory import GONE
from llm_operator.observe import Outside, meta_of, status_of
from llm_operator.plans import apikeys, names
from llm_operator.plans.objects import keys
from llm_operator.ports.cluster import ApiError
from llm_operator.state import DigestedKey, Given, Key, Manifest, Meta, ObservedKey
from llm_runtime.contract import KEY_PREFIX, hash_key

log = logging.getLogger(__name__)
ASKED_BY_NAME = 8


@dataclass(frozen=True)
class ReadKey:
    """An ApiKey that can be read."""

    meta: Meta
    spec: ApiKeySpec
    status: ApiKeyStatus


@dataclass(frozen=True)
class ReadDeployment:
    """What keys need of an LLMDeployment."""

    meta: Meta
    tiers: tuple[str, ...]
    """Names of the tiers that it has; none where they can't be read."""


async def api_keys(outside: Outside, namespace: str) -> tuple[ReadKey, ...]:
    """The ApiKeys of a namespace. One that can't be read opens nothing and stops no other."""
    found = await outside.cluster.read("ApiKey", namespace, _readable)
    return tuple(read for read in found if read is not None)


def _readable(item: Manifest) -> ReadKey | None:
    meta = meta_of(item)
    try:
        return ReadKey(meta, ApiKeySpec.model_validate(item["spec"]), status_of(ApiKeyStatus, item))
    except (ValidationError, KeyError) as error:
        why = apikeys.unreadable(error)
        # Its own status and an Event say so once;
        # here it is met with each look at any key of the namespace.
        log.debug(
            "ApiKey %s/%s can't be read and opens nothing: %s", meta.namespace, meta.name, why
        )
        return None


async def digested(
    outside: Outside, meta: Meta, known: Iterable[ReadKey], given: Given | None = None
) -> tuple[DigestedKey, ...]:
    """Digests of the keys that open this deployment."""
    concerned = [
        each for each in known if not each.meta.deleting and apikeys.opens(each.spec, meta)
    ]
    found = await asyncio.gather(*(_digested(outside, meta, each, given) for each in concerned))
    return tuple(key for key in found if key is not None)


async def _digested(
    outside: Outside, meta: Meta, key: ReadKey, given: Given | None
) -> DigestedKey | None:
    owner = key.meta
    spec = key.spec
    status = key.status
    known = (status.prefix or "").removeprefix(f"{KEY_PREFIX}_")
    digest = outside.memory.digests.get((meta.uid, owner.uid, known)) if known else None
    if digest is not None:
        return DigestedKey(known, digest, owner, spec, status)
    # Until a renamed Secret has been made, the key is still in the one that the status names.
    name = status.secret_name or apikeys.secret_name(owner, spec)
    try:
        secret = await outside.cluster.get("Secret", meta.namespace, name)
    except ApiError as error:
        return _as_before(key, given, error)
    found = keys.issued(secret) if secret and names.owned(secret, owner) else None
    if found is None:
        return None
    value, key_id = found
    digest = outside.memory.digests[meta.uid, owner.uid, key_id] = hash_key(value, meta.uid)
    return DigestedKey(key_id, digest, owner, spec, status)


def _as_before(key: ReadKey, given: Given | None, error: ApiError) -> DigestedKey | None:
    """The key while its Secret can't be read: pods that have it keep it, and others get it
    later."""
    who = f"{key.meta.namespace}/{key.meta.name}"
    record = given.record(key.meta) if given else None
    log.warning(
        "the Secret of ApiKey %s can't be read, its pods keep what they have: %s", who, error
    )
    if record is None or key.status.prefix not in (None, f"{KEY_PREFIX}_{record.id}"):
        return None
    return DigestedKey(record.id, record.digest, key.meta, key.spec, key.status)


async def given(outside: Outside, meta: Meta, live: Manifest | None = None) -> Given | None:
    """What the deployment's pods were given; None where it has no key file of its own.

    `live` is the Secret where it was read already.
    """
    known = outside.memory.given.get(meta.key)
    if live is None:
        secret = outside.memory.secrets.get((meta.namespace, names.keys_secret(meta)))
        if known is not None or secret == GONE:
            return known
        live = await outside.cluster.get("Secret", meta.namespace, names.keys_secret(meta))
    if live is None or not names.owned(live, meta):
        outside.memory.given.pop(meta.key, None)
        return None
    found = outside.memory.given[meta.key] = keys.given(live, known)
    return found


async def api_key(outside: Outside, resource: Manifest) -> ObservedKey:
    """Everything about one ApiKey.
    Raises pydantic.ValidationError for a specification that can't be read."""
    meta = meta_of(resource)
    spec = ApiKeySpec.model_validate(resource.get("spec") or {})
    status = status_of(ApiKeyStatus, resource)
    secret, deployments = await asyncio.gather(
        outside.cluster.get("Secret", meta.namespace, apikeys.secret_name(meta, spec)),
        _deployments(outside, meta.namespace, spec, status),
    )
    tiers = {each.meta.name: each.tiers for each in deployments if apikeys.opens(spec, each.meta)}
    known = {*tiers, *(status.deployments or ())}
    return ObservedKey(
        meta=meta,
        spec=spec,
        status=status,
        secret=secret,
        deployments=tuple(each.meta for each in deployments),
        now=outside.clock(),
        tiers=tiers,
        given=await all_given(
            outside, (each.meta for each in deployments if each.meta.name in known)
        ),
    )


async def _deployments(
    outside: Outside, namespace: str, spec: ApiKeySpec, status: ApiKeyStatus
) -> list[ReadDeployment]:
    """LLMDeployments that the key opens or has opened. A few are read by their names, because a
    namespace may have thousands."""
    named = sorted({*(spec.deployments or ()), *(status.deployments or ())})
    if spec.selector is not None or len(named) > ASKED_BY_NAME:
        return await outside.cluster.read("LLMDeployment", namespace, _read_deployment)
    found = await asyncio.gather(
        *(outside.cluster.seen("LLMDeployment", namespace, name) for name in named)
    )
    return [_read_deployment(item) for item in found if item is not None]


def _read_deployment(item: Manifest) -> ReadDeployment:
    return ReadDeployment(meta_of(item), _tier_names(item))


async def all_given(outside: Outside, deployments: Iterable[Meta]) -> dict[str, Given]:
    """By name, what the pods of those deployments were given that have a key file."""

    async def one(meta: Meta) -> Given | None:
        try:
            return await given(outside, meta)
        except ApiError as error:
            return Given("", {}, trouble=str(error))

    metas = [meta for meta in deployments if not meta.deleting]
    found = await asyncio.gather(*(one(meta) for meta in metas))
    return {meta.name: each for meta, each in zip(metas, found, strict=True) if each is not None}


def _tier_names(deployment: Manifest) -> tuple[str, ...]:
    try:
        return AccessSpec.model_validate(deployment["spec"].get("access") or {}).tier_names()
    except (ValidationError, AttributeError, KeyError):
        # Its own status says so; the keys of its neighbours are none the worse.
        return ()


def late(known: Iterable[ReadKey], deployment: Meta, given: Given | None) -> tuple[Key, ...]:
    """ApiKeys whose status does not say what this deployment's pods were given."""
    return tuple(
        each.meta.key
        for each in known
        if not each.meta.deleting
        and apikeys.late(each.meta, each.spec, each.status, deployment, given)
    )
