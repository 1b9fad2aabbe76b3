"""Whether an LLMDeployment asks more of its pods than the platform allows. Pure."""

from collections.abc import Iterator

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.pod import PodSpec, env_refusal
from llm_operator.plans import approval
from llm_operator.plans.objects import revision
from llm_operator.plans.reasons import Reason
from llm_operator.settings import Choice, PodPolicy
from llm_operator.state import Fault, Observed


def refusal(observed: Observed, policy: PodPolicy) -> Fault | None:
    """Why no new pods are made for this specification. Revisions that exist already are not
    judged."""
    stable = revision.recovered(observed).stable
    target = revision.wanted(approval.as_approved(observed, stable))
    children = observed.revisions.get(target.revision) if target else None
    if children is not None and children.config is not None:
        return None
    return next(_refusals(observed.spec, observed.meta.namespace, policy), None)


def _refusals(spec: LLMDeploymentSpec, namespace: str, policy: PodPolicy) -> Iterator[Fault]:
    pod = spec.pod
    for variable in pod.env or ():
        if refusal := env_refusal(variable):
            yield Fault(
                Reason.InvalidSpec, f"spec.pod.env: {variable.name}: {refusal}", terminal=True
            )
    asked: tuple[tuple[str, str, list[str], Choice], ...] = (
        ("spec.pod.annotations", "annotations", list(pod.annotations or ()), policy.annotations),
        ("spec.pod.labels", "labels", list(pod.labels or ()), policy.labels),
        (
            "spec.pod.tolerations",
            "tolerations",
            [each.key or "" for each in pod.tolerations or ()],
            policy.tolerations,
        ),
        (
            "spec.pod.priorityClassName",
            "priorityClasses",
            _one(pod.priority_class_name),
            policy.priority_classes,
        ),
        (
            "spec.pod.runtimeClassName",
            "runtimeClasses",
            _one(pod.runtime_class_name),
            policy.runtime_classes,
        ),
        (
            "spec.pod.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution",
            "antiAffinityNamespaces",
            [each for each in _kept_away(pod) if each != namespace],
            policy.anti_affinity_namespaces,
        ),
        ("spec.image", "images", _one(spec.image), policy.images),
    )
    for field, name, written, choice in asked:
        for each in written:
            if not choice.permits(each):
                what = each or "a toleration without a key, which tolerates every taint,"
                message = (
                    f"{field}: {what} is refused by the platform (podPolicy.{name} of the"
                    " operator's configuration)"
                )
                yield Fault(
                    Reason.NotPermitted,
                    f"{message}: remove it, or have the platform team allow it",
                    terminal=True,
                )


def _kept_away(pod: PodSpec) -> list[str]:
    """The namespaces whose pods can't come to a node, or a zone, that has this one."""
    apart = pod.affinity.pod_anti_affinity if pod.affinity else None
    terms = apart.required_during_scheduling_ignored_during_execution if apart else None
    return [namespace for term in terms or () for namespace in term.namespaces or ()]


def _one(name: str | None) -> list[str]:
    return [name] if name else []
