"""Which Services, HTTPRoute and PodDisruptionBudget exist at a moment of a roll-out, and what each
is; and the ServiceAccount."""

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.crds.rollout import HttpRouteSpec
from llm_operator.crds.schema import plain
from llm_operator.plans import names
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import Decision
from llm_operator.state import Fault, Manifest, Meta, Observed
from llm_runtime import contract

GATEWAY_GROUP = "gateway.networking.k8s.io"


def objects(observed: Observed, decision: Decision) -> list[Manifest]:
    """Services, budget and route.
    They come before the Deployments: clients turn before old pods are told to go."""
    meta = observed.meta
    spec = observed.spec
    found = list[Manifest]()
    if decision.serving:
        found.append(service(meta, spec, decision.serving))
        if spec.replicas > 1 or spec.autoscaling:
            # A single pod may go at any time, or its node could not be drained.
            found.append(disruption_budget(meta, decision.serving))
    candidate = decision.candidate if decision.rolling_out else None
    if candidate is not None and decision.stable is not None:
        found.append(side_service(meta, spec, names.candidate_service(meta), candidate.revision))
    if decision.stable is not None and (route := spec.rollout.http_route) is not None:
        found.append(side_service(meta, spec, names.stable_service(meta), decision.stable.revision))
        if observed.http_routes:
            found.append(
                http_route(meta, spec, route, decision.weight, candidate=candidate is not None)
            )
    return found


def service(meta: Meta, spec: LLMDeploymentSpec, serving: tuple[str, ...]) -> Manifest:
    """The endpoint: its selector names the one revision that serves, so a switch is one write.

    While two revisions share the traffic it selects all pods of the deployment.
    """
    metadata = names.metadata(meta, meta.name)
    if spec.service.annotations:
        metadata["annotations"] = spec.service.annotations
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": spec.service.type,
            "selector": selector(meta, serving),
            "ports": [_port(spec)],
        },
    }


def side_service(meta: Meta, spec: LLMDeploymentSpec, name: str, revision: str) -> Manifest:
    """A Service that selects one revision: for previews, smoke prompts and the weights of an
    HTTPRoute."""
    metadata = names.metadata(meta, name)
    metadata["labels"][names.PREVIEW_LABEL] = "true"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "selector": names.selector(meta, revision),
            "ports": [_port(spec)],
        },
    }


def _port(spec: LLMDeploymentSpec) -> Manifest:
    return {
        "name": "http",
        "port": spec.service.port,
        "targetPort": contract.PORT,
        "protocol": "TCP",
    }


def selector(meta: Meta, serving: tuple[str, ...]) -> dict[str, str]:
    """The labels of the pods that serve: of one revision,
    or while two share the traffic of the whole deployment."""
    return names.selector(meta, serving[0] if len(serving) == 1 else None)


def http_route(
    meta: Meta, spec: LLMDeploymentSpec, route: HttpRouteSpec, weight: int, *, candidate: bool
) -> Manifest:
    """The HTTPRoute, with exact shares of the traffic: `weight` percent for the candidate.

    Defaults inside its lists are written out: server-side apply treats a list as one field, which
    would otherwise never equal what was applied.
    """
    backends = [_backend(names.stable_service(meta), spec, 100 - weight)]
    if candidate:
        backends.append(_backend(names.candidate_service(meta), spec, weight))
    return {
        "apiVersion": f"{GATEWAY_GROUP}/v1",
        "kind": "HTTPRoute",
        "metadata": names.metadata(meta, meta.name),
        "spec": {
            "parentRefs": [
                {"group": GATEWAY_GROUP, "kind": "Gateway", **each}
                for each in plain(route.parent_refs)
            ],
            **({"hostnames": list(route.hostnames)} if route.hostnames else {}),
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": backends,
                }
            ],
        },
    }


def _backend(name: str, spec: LLMDeploymentSpec, weight: int) -> Manifest:
    return {
        "group": "",
        "kind": "Service",
        "name": name,
        "port": spec.service.port,
        "weight": weight,
    }


def service_account(meta: Meta, pull_secrets: tuple[str, ...]) -> Manifest:
    """An identity without a token: the runtime never talks to the API server.

    Pods that name no pull secrets get those of their account when they are made,
    so these change no revision.
    """
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(meta, meta.name),
        "automountServiceAccountToken": False,
    }
    # Absent where there are none: a field that is not written stays as others have set it.
    return (
        {**account, "imagePullSecrets": [{"name": name} for name in pull_secrets]}
        if pull_secrets
        else account
    )


def disruption_budget(meta: Meta, serving: tuple[str, ...]) -> Manifest:
    """One pod at a time may be evicted."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(meta, meta.name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(meta, serving)},
            # A pod that is not ready protects nobody by staying.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def url(meta: Meta, spec: LLMDeploymentSpec) -> str:
    """Where clients inside the cluster reach the endpoint."""
    port = "" if spec.service.port == 80 else f":{spec.service.port}"
    return f"http://{meta.name}.{meta.namespace}.svc{port}"


def fault(observed: Observed) -> Fault | None:
    """A route that the cluster can't have."""
    if observed.spec.rollout.http_route is None or observed.http_routes:
        return None
    return Fault(
        Reason.GatewayApiMissing,
        "spec.rollout.canary.httpRoute is written but the cluster has no HTTPRoute CRD: install the"
        " Gateway API, or remove it; until then the share of a canary follows from the numbers of"
        " pods",
    )
