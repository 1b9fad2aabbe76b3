"""What an ApiKey opens and what is said about it."""

from datetime import UTC, datetime

from llm_operator.crds import ApiKeySpec, ApiKeyStatus
from llm_operator.crds.pod import LabelRequirement
from llm_operator.plans import conditions
from llm_operator.plans.reasons import Reason
from llm_operator.state import Fault, Meta, ObservedKey
from llm_runtime.contract import KEY_PREFIX


def secret_name(meta: Meta, spec: ApiKeySpec) -> str:
    """The Secret that the key goes to."""
    return spec.secret_name or f"{meta.name}-llm-key"


def opens(spec: ApiKeySpec, deployment: Meta) -> bool:
    """Whether the key is for this LLMDeployment of its namespace."""
    if spec.selector is None:
        return deployment.name in (spec.deployments or ())
    wanted = spec.selector.match_labels or {}
    exact = all(deployment.labels.get(key) == value for key, value in wanted.items())
    return exact and all(_holds(rule, deployment.labels) for rule in spec.selector.match_expressions or ())


def _holds(rule: LabelRequirement, labels: dict[str, str]) -> bool:
    value, values = labels.get(rule.key), rule.values or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[rule.operator]


def knows_tier(spec: ApiKeySpec, tiers: tuple[str, ...]) -> bool:
    """Whether the key's tier is one of `tiers`; a key that names none has the default one anywhere."""
    return spec.tier is None or spec.tier in tiers


def status(
    observed: ObservedKey, secret: str, key_id: str | None, issued_at: str | None, fault: Fault | None
) -> ApiKeyStatus:
    """The status once the key's Secret has been looked at."""
    spec, meta = observed.spec, observed.meta
    matched = sorted(d.name for d in observed.deployments if not d.deleting and opens(spec, d))
    missing = sorted(set(spec.deployments or ()) - {d.name for d in observed.deployments})
    ready = _ready(observed, secret, matched, missing, fault)
    stalled = fault is not None and fault.terminal
    verdicts: dict[str, conditions.Verdict] = {
        "Ready": ready,
        "Reconciling": ("True", Reason.Retrying, ready[2])
        if ready[1] in (Reason.DeploymentNotFound, Reason.TierUnknown)
        else ("False", Reason.Settled, "nothing is under way"),
        "Stalled": ("True", *ready[1:]) if stalled else ("False", Reason.NoFault, "nothing is stuck"),
    }
    return ApiKeyStatus(
        observed_generation=meta.generation,
        conditions=conditions.settle(verdicts, observed.status.conditions, meta.generation, observed.now),
        prefix=f"{KEY_PREFIX}_{key_id}" if key_id else None,
        secret_name=secret if key_id else observed.status.secret_name,
        issued_at=issued_at,
        deployments=tuple(matched[:1000]) or None,
    )


def _ready(
    observed: ObservedKey, secret: str, matched: list[str], missing: list[str], fault: Fault | None
) -> conditions.Verdict:
    spec, namespace = observed.spec, observed.meta.namespace
    if fault is not None:
        return "False", fault.reason, fault.message
    if spec.suspended:
        return "False", Reason.Suspended, "spec.suspended is true: the key is refused until it is false"
    if expired(spec, observed.now):
        return "False", Reason.Expired, f"the key expired at {spec.expires_at}: set a later spec.expiresAt"
    if missing:
        return (
            "False",
            Reason.DeploymentNotFound,
            f"namespace {namespace} has no LLMDeployment {', '.join(missing)}: kubectl -n {namespace} get llmd",
        )
    if strangers := [name for name in matched if not knows_tier(spec, observed.tiers[name])]:
        said = (
            f"LLMDeployment {', '.join(strangers[:20])} has no tier {spec.tier}: the key has the default tier's limits "
            f"there; use {', '.join(observed.tiers[strangers[0]])} or add it to spec.access.tiers"
        )
        return "False", Reason.TierUnknown, said
    where = f"Secret {secret} holds the key under api-key"
    return "True", Reason.Issued, f"{where}; it opens {', '.join(matched[:20]) or 'no LLMDeployment yet'}"


def expired(spec: ApiKeySpec, now: datetime) -> bool:
    """Whether `expiresAt` has passed."""
    expires = spec.expires_at
    return expires is not None and (expires if expires.tzinfo else expires.replace(tzinfo=UTC)) <= now
