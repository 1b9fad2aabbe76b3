"""Names, labels and owner references of everything that belongs to one LLMDeployment."""

import hashlib

from llm_operator.crds import API_VERSION, GROUP, AdapterStatus
from llm_operator.state import Manifest, Meta
from llm_runtime import contract

DEPLOYMENT_LABEL = f"{GROUP}/deployment"
REVISION_LABEL = f"{GROUP}/revision"
APPROVE_ANNOTATION = f"{GROUP}/approve-version"
PREVIEW_LABEL = f"{GROUP}/preview"
"""Label of Services beside the endpoint's. Their pods are scraped through the endpoint's Service
already."""
KEYS_ANNOTATION = f"{GROUP}/keys"
TEMPLATE_ANNOTATION = f"{GROUP}/template"
"""Annotation of a revision's Deployment: the digest of the template that its ConfigMap
remembers."""
MANAGED_BY = "llm-operator"
FETCH_CONTAINER = "fetch"
"""The init container that brings the model."""
ADAPTERS_CONTAINER = "adapters"
"""The init container that stays and brings adapters: it alone has the credentials for that."""
RUNTIME_CONTAINER = "runtime"
EVALUATION_LABEL = f"{GROUP}/evaluation-of"
KEY_LABEL = f"{GROUP}/apikey"
MANAGED_SELECTOR = f"app.kubernetes.io/managed-by={MANAGED_BY}"


def managed(resource: Manifest) -> bool:
    """Whether MANAGED_SELECTOR finds it."""
    name, _, value = MANAGED_SELECTOR.partition("=")
    found = (resource["metadata"].get("labels") or {}).get(name)
    return bool(found == value)


def labels(meta: Meta, revision: str | None = None) -> dict[str, str]:
    """Own labels only: an owner's labels on its children would make Argo CD prune them."""
    own = {
        "app.kubernetes.io/name": "llm-runtime",
        "app.kubernetes.io/instance": meta.name,
        "app.kubernetes.io/managed-by": MANAGED_BY,
        DEPLOYMENT_LABEL: meta.name,
    }
    return own | ({REVISION_LABEL: revision} if revision else {})


def revision_of(manifest: Manifest) -> str:
    """The revision that a child or pod is labelled with; empty without one."""
    return str((manifest["metadata"].get("labels") or {}).get(REVISION_LABEL, ""))


def selector(meta: Meta, revision: str | None = None) -> dict[str, str]:
    """The labels by which Services, Deployments and budgets find pods."""
    return {DEPLOYMENT_LABEL: meta.name} | ({REVISION_LABEL: revision} if revision else {})


def owner(meta: Meta) -> Manifest:
    """Kubernetes removes what carries this when the owner is deleted."""
    return {
        "apiVersion": API_VERSION,
        "kind": meta.kind,
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(meta: Meta, name: str, revision: str | None = None) -> Manifest:
    """A child's metadata."""
    return {
        "name": name,
        "namespace": meta.namespace,
        "labels": labels(meta, revision),
        "ownerReferences": [owner(meta)],
    }


def owned(manifest: Manifest, meta: Meta) -> bool:
    """Whether `manifest` was made for this very owner, not for an earlier one of the same name."""
    references = manifest.get("metadata", {}).get("ownerReferences") or []
    return any(
        reference.get("uid") == meta.uid and reference.get("controller") for reference in references
    )


def ours(manifest: Manifest, meta: Meta) -> bool:
    """Whether `manifest` belongs to this owner: it says so, or it did and has lost its owner
    reference, as a restored object has.

    Then nobody else may control it, and its labels and its name must be those that this owner's
    have.
    """
    about = manifest.get("metadata", {})
    if owned(manifest, meta):
        return True
    if any(reference.get("controller") for reference in about.get("ownerReferences") or []):
        return False
    marks = about.get("labels") or {}
    if marks.get("app.kubernetes.io/managed-by") != MANAGED_BY:
        return False
    if meta.kind == "ApiKey":
        return marks.get(KEY_LABEL) == key_label(meta)
    revision = marks.get(REVISION_LABEL)
    names = {child(meta, revision)} if revision else {make(meta) for make in _NAMES}
    return marks.get(DEPLOYMENT_LABEL) == meta.name and about.get("name") in names


def reserved(name: str, secret: Manifest | None) -> bool:
    """Whether the operator keeps this Secret for an LLMDeployment or an ApiKey,
    or may under its name."""
    if secret is None:
        return name.endswith(_RESERVED_ENDS)
    about = secret["metadata"]
    owners = about.get("ownerReferences") or []
    by_operator = (about.get("labels") or {}).get("app.kubernetes.io/managed-by") == MANAGED_BY
    return by_operator or any(
        each.get("apiVersion") == API_VERSION and each.get("controller") for each in owners
    )


_RESERVED_ENDS = ("-keys", "-registry", "-adapters", "-operator-key", "-llm-key")


def key_label(meta: Meta) -> str:
    """The label's value of an ApiKey's own Secret."""
    return meta.name[:63].rstrip("-.")


def child(meta: Meta, revision: str) -> str:
    """Name of a revision's Deployment and ConfigMap."""
    return f"{meta.name}-{revision}"


def keys_secret(meta: Meta) -> str:
    """Name of the Secret with the key file."""
    return f"{meta.name}-keys"


def registry_secret(meta: Meta) -> str:
    """Name of the Secret with the registry credentials."""
    return f"{meta.name}-registry"


def adapters_secret(meta: Meta) -> str:
    """Name of the Secret with the list of adapters and the credentials to fetch them."""
    return f"{meta.name}-adapters"


def evaluation_label(namespace: str, name: str) -> str:
    """The value of EVALUATION_LABEL on the Jobs of an LLMDeployment,
    which lie in the operator's namespace."""
    return hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:32]


def mark(text: str) -> str:
    """Digest of what distinguishes a version from others of the same number."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def loaded_as(candidate: AdapterStatus) -> str:
    """The name under which pods have a candidate of an adapter:
    another one for whatever else may be loaded."""
    known = mark(repr(candidate.identity))
    return f"{candidate.name}{contract.CANDIDATE_MARK}{candidate.version[:40]}.{known}"


def candidate_service(meta: Meta) -> str:
    """Name of the Service that finds the candidate's pods during a roll-out."""
    return f"{meta.name}-candidate"


def stable_service(meta: Meta) -> str:
    """Name of the Service that finds the stable revision's pods, where an HTTPRoute needs one."""
    return f"{meta.name}-stable"


def operator_key_secret(meta: Meta) -> str:
    """Name of the Secret with the key by which the operator asks smoke prompts."""
    return f"{meta.name}-operator-key"


def secrets(meta: Meta) -> tuple[str, ...]:
    """Every Secret that the operator writes for an LLMDeployment."""
    return (
        keys_secret(meta),
        registry_secret(meta),
        adapters_secret(meta),
        operator_key_secret(meta),
    )


def itself(meta: Meta) -> str:
    """Name of the endpoint's Service, and of every other object of which there is only one."""
    return meta.name


_NAMES = (
    itself, keys_secret, registry_secret, adapters_secret, candidate_service, stable_service, operator_key_secret,
)  # fmt: skip
