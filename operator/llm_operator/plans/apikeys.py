"""Which LLMDeployments an ApiKey opens, and its status and condition."""

from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import ValidationError

from llm_operator.crds import ApiKeySpec, ApiKeyStatus
from llm_operator.crds.scheduling import LabelRequirement
from llm_operator.plans.objects import keys
from llm_operator.plans.reasons import Reason
from llm_operator.plans.status.findings import Finding, as_conditions
from llm_operator.plans.status.findings import invalid as invalid_conditions
from llm_operator.state import DigestedKey, Fault, Given, Meta, ObservedKey
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
    return exact and all(
        _holds(rule, deployment.labels) for rule in spec.selector.match_expressions or ()
    )


def _holds(rule: LabelRequirement, labels: dict[str, str]) -> bool:
    value = labels.get(rule.key)
    values = rule.values or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[rule.operator]


def knows_tier(spec: ApiKeySpec, tiers: tuple[str, ...]) -> bool:
    """Whether the key's tier is one of `tiers`;
    a key that names none has the default one anywhere."""
    return spec.tier is None or spec.tier in tiers


def unreadable(error: Exception) -> str:
    """What is wrong with a specification, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_input=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"


def delivery(
    key: DigestedKey | None, owner: Meta, spec: ApiKeySpec, deployment: Meta, given: Given | None
) -> Reason:
    """Whether the deployment's pods know the key as it is wanted:
    Issued, Delivering, or KeyFileFull.

    `key` has no digest here; None: there is none yet.
    """
    if given is None:
        return Reason.Issued  # It has no key file, and so no pods that know any key.
    known = given.record(owner)
    if key is None or not opens(spec, deployment):
        return Reason.Issued if known is None else Reason.Delivering
    if known is not None and known.model_copy(update={"digest": ""}) == keys.record(key):
        return Reason.Issued
    if known is None and spec.suspended:
        return Reason.Issued  # A key that is not known is refused, too.
    return (
        Reason.KeyFileFull
        if f"{owner.namespace}/{owner.name}" in given.left_out
        else Reason.Delivering
    )


def late(
    owner: Meta, spec: ApiKeySpec, status: ApiKeyStatus, deployment: Meta, given: Given | None
) -> bool:
    """Whether the status says something else of the delivery to this deployment than is the
    case."""
    ready = next((each for each in status.conditions if each.type == "Ready"), None)
    reason, message = (ready.reason, ready.message) if ready else ("", "")
    found = delivery(_wanted(owner, spec, status.prefix), owner, spec, deployment, given)
    if found == Reason.Issued:
        named = not opens(spec, deployment) and deployment.name in (status.deployments or ())
        return named or (
            reason in (Reason.Delivering, Reason.KeyFileFull) and deployment.name in message
        )
    return reason != found or (given is not None and given.trouble not in message)


def deployments(observed: ObservedKey, prefix: str | None, reason: Reason) -> list[str]:
    """The LLMDeployments to which the delivery is `reason`."""
    wanted = _wanted(observed.meta, observed.spec, prefix)
    return sorted(
        each.name
        for each in observed.deployments
        if not each.deleting
        and delivery(wanted, observed.meta, observed.spec, each, observed.given.get(each.name))
        == reason
    )


def _wanted(owner: Meta, spec: ApiKeySpec, prefix: str | None) -> DigestedKey | None:
    return DigestedKey(prefix.removeprefix(f"{KEY_PREFIX}_"), "", owner, spec) if prefix else None


def status(
    observed: ObservedKey,
    secret: str,
    key_id: str | None,
    issued_at: str | None,
    fault: Fault | None,
) -> ApiKeyStatus:
    """The status once the key's Secret has been looked at.
    It says what pods were given, where that is not yet so."""
    spec = observed.spec
    meta = observed.meta
    matched = sorted(d.name for d in observed.deployments if not d.deleting and opens(spec, d))
    missing = sorted(set(spec.deployments or ()) - {d.name for d in observed.deployments})
    prefix = f"{KEY_PREFIX}_{key_id}" if key_id else None
    behind, full = (
        deployments(observed, prefix, reason) for reason in (Reason.Delivering, Reason.KeyFileFull)
    )
    ready = _undelivered(observed, behind, fault) or _ready(
        observed, secret, matched, missing, fault, full
    )
    taking = sorted({*matched, *behind})
    stalled = fault is not None and fault.terminal
    findings: dict[str, Finding] = {
        "Ready": ready,
        "Reconciling": (
            ("True", Reason.Retrying, ready[2])
            if ready[1] in PASSING or (fault is not None and not fault.terminal)
            else ("False", Reason.Settled, "nothing is under way")
        ),
        "Stalled": (
            ("True", *ready[1:]) if stalled else ("False", Reason.NoFault, "nothing is stuck")
        ),
    }
    return ApiKeyStatus(
        observed_generation=meta.generation,
        conditions=as_conditions(
            findings, observed.status.conditions, meta.generation, observed.now
        ),
        prefix=prefix,
        secret_name=secret if key_id else observed.status.secret_name,
        issued_at=issued_at,
        deployments=tuple(taking[:1000]) or None,
    )


PASSING = (Reason.DeploymentNotFound, Reason.TierUnknown, Reason.Delivering, Reason.KeyFileFull)
"""Reasons that go away without a change of the ApiKey."""


def _undelivered(observed: ObservedKey, behind: list[str], fault: Fault | None) -> Finding | None:
    if not behind or (fault is not None and fault.terminal):
        return None
    known = [name for name in behind if observed.given[name].record(observed.meta)]
    troubles = dict.fromkeys(
        observed.given[name].trouble for name in behind if observed.given[name].trouble
    )
    have = (
        f"the pods of LLMDeployment {', '.join(known[:20])} know the key as it was before"
        if known
        else ""
    )
    lack = [name for name in behind if name not in known]
    none = (
        f"the pods of LLMDeployment {', '.join(lack[:20])} do not know the key yet" if lack else ""
    )
    why = (
        "their key file could not be written, which is tried again by itself:"
        f" {'; '.join(troubles)}"
    )
    message = "; ".join(part for part in (have, none, why if troubles else "") if part)
    return ("False" if troubles else "Unknown"), Reason.Delivering, message


def invalid(
    observed: ApiKeyStatus, meta: Meta, message: str, taking: Iterable[str], now: datetime
) -> ApiKeyStatus:
    """The status of an ApiKey that can't be read.
    `taking`: deployments whose pods still know it."""
    still = ", ".join(sorted(taking)[:20])
    when = f" as soon as the pods of LLMDeployment {still} have been told" if still else ""
    text = f"spec.{message}; the key opens nothing{when}"
    return observed.model_copy(
        update={
            "conditions": invalid_conditions(observed.conditions, text, meta.generation, now),
            "observed_generation": meta.generation,
            "deployments": tuple(sorted(taking)) or None,
        }
    )


def _ready(
    observed: ObservedKey,
    secret: str,
    matched: list[str],
    missing: list[str],
    fault: Fault | None,
    full: list[str],
) -> Finding:
    spec = observed.spec
    namespace = observed.meta.namespace
    if fault is not None:
        return "False", fault.reason, fault.message
    if spec.suspended:
        return (
            "False",
            Reason.Suspended,
            "spec.suspended is true: the key is refused until it is false",
        )
    if expired(spec, observed.now):
        return (
            "False",
            Reason.Expired,
            f"the key expired at {spec.expires_at}: set a later spec.expiresAt",
        )
    if full:
        return (
            "False",
            Reason.KeyFileFull,
            (
                f"the key file of LLMDeployment {', '.join(full[:20])} has no room for this key,"
                " which is refused there (a Secret holds 1 MiB): delete ApiKeys that nobody needs,"
                " or name fewer in spec.adapters of these"
            ),
        )
    if missing:
        return (
            "False",
            Reason.DeploymentNotFound,
            (
                f"namespace {namespace} has no LLMDeployment {', '.join(missing)}: kubectl -n"
                f" {namespace} get llmd"
            ),
        )
    if strangers := [name for name in matched if not knows_tier(spec, observed.tiers[name])]:
        text = (
            f"LLMDeployment {', '.join(strangers[:20])} has no tier {spec.tier}: the key has the"
            f" default tier's limits there; use {', '.join(observed.tiers[strangers[0]])} or add it"
            " to spec.access.tiers"
        )
        return "False", Reason.TierUnknown, text
    where = f"Secret {secret} holds the key under api-key"
    return (
        "True",
        Reason.Issued,
        f"{where}; it opens {', '.join(matched[:20]) or 'no LLMDeployment yet'}",
    )


def expired(spec: ApiKeySpec, now: datetime) -> bool:
    """Whether `expiresAt` has passed."""
    expires = spec.expires_at
    return (
        expires is not None and (expires if expires.tzinfo else expires.replace(tzinfo=UTC)) <= now
    )
