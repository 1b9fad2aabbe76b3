"""Secrets: the runtime's key file, the registry credentials of the fetching container,
and an ApiKey's own Secret."""

import base64
import hashlib
import json
from collections.abc import Iterable

from llm_operator.crds import AccessSpec, ApiKeySpec
from llm_operator.crds.access import LimitsSpec, TierSpec
from llm_operator.plans import names
from llm_operator.state import Account, Connection, DigestedKey, Given, Manifest, Meta, pod_ended
from llm_runtime import contract

API_KEY_FIELD = "api-key"
REGISTRY_MOUNT = "/etc/llm-runtime/registry"
CA_FILE = "ca.crt"
ROOM_BYTES = (1 << 20) - 4096
"""Largest size of all data of the Secret together: the API server takes a mebibyte."""


def encode(data: dict[str, str]) -> dict[str, str]:
    """A Secret's data."""
    return {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}


def decode(secret: Manifest, field: str) -> str | None:
    """One field of a Secret's data as text, or None."""
    value = (secret.get("data") or {}).get(field)
    try:
        return base64.b64decode(value).decode() if value else None
    except ValueError:
        return None


def key_file(
    meta: Meta, access: AccessSpec, keys: Iterable[DigestedKey], room: int = ROOM_BYTES
) -> str:
    """What the runtime mounts: digests only,
    in a stable order so that nothing is written when nothing changed."""
    tiers = tuple(
        contract.FileTier(name=tier.name, **_figures(tier)) for tier in access.tiers or ()
    )
    return _filled(
        contract.KeyFile(salt=meta.uid, tiers=tiers, default_tier=access.default_tier), keys, room
    )


def _filled(file: contract.KeyFile, keys: Iterable[DigestedKey], room: int) -> str:
    """The file with those of the keys for which it has room:
    revocations first, then who was there first.

    A key that is suspended is refused when it is not in the file, too,
    so it makes room for one that works.
    """
    ordered = sorted(keys, key=lambda key: (key.meta.name, key.key_id))
    text = _text(file.model_copy(update={"keys": tuple(map(record, ordered))}))
    if _size(text) <= room:
        return text
    left = room - _size(_text(file))
    kept = set[str]()
    for key in sorted(ordered, key=_rank):
        size = _size(_text(record(key))) + 1
        if size <= left:
            left -= size
            kept.add(key.key_id)
    fitting = tuple(record(key) for key in ordered if key.key_id in kept)
    return _text(file.model_copy(update={"keys": fitting}))


def _rank(key: DigestedKey) -> tuple[bool, bool, str, str]:
    """The operator's own key first."""
    return key.meta.kind == "ApiKey", key.spec.suspended, key.status.issued_at or "9", key.meta.name


def _text(file: contract.KeyFile | contract.KeyRecord) -> str:
    return file.model_dump_json(by_alias=True, exclude_none=True)


def _size(text: str) -> int:
    return len(text.encode())


def record(key: DigestedKey) -> contract.KeyRecord:
    """What the pods are to know of a key."""
    return contract.KeyRecord(
        id=key.key_id,
        digest=key.digest,
        name=f"{key.meta.namespace}/{key.meta.name}",
        owner=key.spec.owner,
        expires_at=key.spec.expires_at,
        suspended=key.spec.suspended,
        tier=key.spec.tier or "",
        limits=contract.Limits(**_figures(key.spec.limits)),
        adapters=key.spec.adapters or (),
        operator=key.meta.kind == "Secret",
    )


def given(
    secret: Manifest, before: Given | None = None, keys: Iterable[DigestedKey] | None = None
) -> Given:
    """What a key file gives, and which of `keys` it has no room for.
    A file that can't be read gives nothing."""
    mark = digest(secret)
    if before is not None and before.digest == mark:
        records = before.records
        adapters = before.adapters
    else:
        try:
            file = contract.KeyFile.model_validate_json(decode(secret, contract.KEYS_FILE) or "")
        except ValueError:
            file = contract.KeyFile(salt="")
        records = {each.name: each for each in file.keys}
        adapters = _adapters(secret)
    if keys is None:
        left_out, trouble = (before.left_out, before.trouble) if before else (frozenset[str](), "")
        return Given(mark, records, left_out, adapters, trouble)
    wanted = {f"{key.meta.namespace}/{key.meta.name}" for key in keys if not key.spec.suspended}
    return Given(mark, records, frozenset(wanted - records.keys()), adapters)


def _adapters(secret: Manifest) -> bool:
    try:
        return bool(json.loads(decode(secret, contract.ADAPTERS_FILE) or "{}").get("adapters"))
    except (ValueError, AttributeError):
        return False


def _figures(limits: LimitsSpec | TierSpec) -> dict[str, int | None]:
    return {name: getattr(limits, name) for name in contract.Limits.model_fields}


def keys_secret(
    meta: Meta, access: AccessSpec, keys: Iterable[DigestedKey], adapters: str, shadow: str = ""
) -> Manifest:
    """The key file as the pods mount it,
    and beside it the adapters of those that fetch them by themselves.

    With `shadow`, also who copies requests to whom: all pods of a deployment mount this Secret
    whole, so that reaches those that run.
    """
    text = key_file(meta, access, keys, ROOM_BYTES - _size(adapters) - _size(shadow))
    beside = {contract.SHADOW_FILE: shadow} if shadow else {}
    return _mounted(
        meta, encode({contract.KEYS_FILE: text, contract.ADAPTERS_FILE: adapters, **beside})
    )


def with_keys(
    secret: Manifest, meta: Meta, access: AccessSpec, keys: Iterable[DigestedKey]
) -> Manifest:
    """The Secret with these keys, and all else as it was; `access` is for a key file that can't be
    read."""
    others = {
        name: text
        for name, text in (secret.get("data") or {}).items()
        if name != contract.KEYS_FILE
    }
    room = ROOM_BYTES - sum(len(text) * 3 // 4 for text in others.values())
    try:
        file = contract.KeyFile.model_validate_json(decode(secret, contract.KEYS_FILE) or "")
        text = _filled(file.model_copy(update={"keys": ()}), keys, room)
    except ValueError:
        text = key_file(meta, access, keys, room)
    return _mounted(meta, {**others, **encode({contract.KEYS_FILE: text})})


def _mounted(meta: Meta, data: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(meta, names.keys_secret(meta)),
        "type": "Opaque",
        "data": data,
    }


def digest(secret: Manifest) -> str:
    """A short mark by which changed content of the Secret is recognised."""
    return hashlib.sha256(
        json.dumps(secret.get("data") or {}, sort_keys=True).encode()
    ).hexdigest()[:16]


def untold(pod: Manifest, digest: str) -> bool:
    """Whether the pod's kubelet has not been told of this content."""
    meta = pod["metadata"]
    current = (meta.get("annotations") or {}).get(names.KEYS_ANNOTATION) == digest
    return not (current or meta.get("deletionTimestamp") or pod_ended(pod))


def registry_secret(meta: Meta, connection: Connection | None) -> Manifest:
    """Credentials for the fetching container, named as MLflow's client reads them.

    It is there without any, too: the pods read it by its name, which must be nobody else's.
    """
    account = connection.for_pods if connection else Account()
    data = {
        contract.ENV_MLFLOW_USERNAME: account.username,
        contract.ENV_MLFLOW_PASSWORD: account.password,
        contract.ENV_MLFLOW_TOKEN: account.token,
        contract.ENV_MLFLOW_WORKSPACE: connection.workspace if connection else "",
        contract.ENV_MLFLOW_CA_FILE: (
            f"{REGISTRY_MOUNT}/{CA_FILE}" if connection and connection.ca else ""
        ),
        CA_FILE: connection.ca if connection else "",
        contract.ENV_ARTIFACT_HOSTS: ",".join(connection.artifact_hosts) if connection else "",
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(meta, names.registry_secret(meta)),
        "type": "Opaque",
        "data": encode({name: value for name, value in data.items() if value}),
    }


def issued_secret(meta: Meta, name: str, key: str) -> Manifest:
    """The Secret that holds one ApiKey's key: the only place where it is in plain text."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": {
                "app.kubernetes.io/managed-by": names.MANAGED_BY,
                names.KEY_LABEL: names.key_label(meta),
            },
            "ownerReferences": [names.owner(meta)],
        },
        "type": "Opaque",
        "data": encode({API_KEY_FIELD: key}),
    }


def operator_secret(meta: Meta, key: str) -> Manifest:
    """The key by which the operator itself asks this deployment's pods."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(meta, names.operator_key_secret(meta)),
        "type": "Opaque",
        "data": encode({API_KEY_FIELD: key}),
    }


def issued(secret: Manifest) -> tuple[str, str] | None:
    """The key that a Secret holds and its public id; None where it holds none."""
    key = decode(secret, API_KEY_FIELD) or ""
    key_id = contract.key_id_of(key)
    return (key, key_id) if key_id else None


def operator_key(meta: Meta, key_id: str, digest: str) -> DigestedKey:
    """The operator's own record: no tier holds it back."""
    most = dict.fromkeys(("requests_per_minute", "tokens_per_minute"), 10**9)
    most |= dict.fromkeys(("requests_per_month", "tokens_per_month"), 10**15)
    limits = LimitsSpec(max_concurrent=100_000, **most)
    spec = ApiKeySpec(owner="llm-operator", deployments=(meta.name,), limits=limits)
    return DigestedKey(
        key_id,
        digest,
        Meta("Secret", meta.namespace, names.operator_key_secret(meta), meta.uid, 0),
        spec,
    )
