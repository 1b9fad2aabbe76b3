"""The typed values that observing, planning and applying hand to each other: figures, evidence,
what was observed, the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from llm_operator.crds import (
    AdapterCandidate,
    AdapterSpec,
    AdapterStatus,
    ApiKeySpec,
    ApiKeyStatus,
    GateVerdict,
    LLMDeploymentSpec,
    LLMDeploymentStatus,
)
from llm_operator.crds.rollout import LoadProbe, PrometheusQuery
from llm_operator.crds.status import LoadStatus
from llm_runtime.contract import KeyRecord, LoadFigures

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, order=True)
class Key:
    """Which custom resource to look at: all that an event tells."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Meta:
    """Who a custom resource is."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    labels: dict[str, str] = field(default_factory=dict)
    deleting: bool = False
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.kind, self.namespace, self.name)


@dataclass(frozen=True)
class Fault:
    """Something that keeps the wanted state away. `terminal`: it will not pass by itself."""

    reason: str
    message: str
    terminal: bool = False


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model in the registry, or the files that spec.model.uri names."""

    name: str
    version: str
    source: str = ""
    run_id: str = ""
    registered_at: str = ""
    """Time of the version's creation in the registry (RFC 3339); empty where it says none."""


@dataclass(frozen=True)
class Account:
    """Who somebody is to an MLflow server."""

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Connection:
    """One MLflow server, with the credentials as they are now."""

    name: str
    tracking_uri: str
    workspace: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: str = ""
    """PEM text of the certificate authority."""
    pods: Account | None = None
    """The account of the pods, where they have one of their own."""
    artifact_hosts: tuple[str, ...] = ()
    """Hosts beside the server's own to which the pods may send their credentials."""

    @property
    def for_pods(self) -> Account:
        """What the pods are given: never the operator's own account where there is another."""
        return Account(self.username, self.password, self.token) if self.pods is None else self.pods


@dataclass(frozen=True)
class Resolution:
    """The result of resolving the model reference:
    a version, a fault, or both when the last known version is kept."""

    model: ModelVersion | None
    fault: Fault | None = None

    @property
    def last_known(self) -> bool:
        return self.model is not None and self.fault is not None


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter of the specification, and what became of its reference."""

    spec: AdapterSpec
    resolution: Resolution


@dataclass(frozen=True)
class Download:
    """How far a pod's download of the model is."""

    done_bytes: float
    total_bytes: float
    bytes_per_second: float


@dataclass(frozen=True)
class Load:
    """What a pod's engine was busy with when it was asked."""

    running: float
    """Sequences in the batch."""
    waiting: float
    """Sequences that wait for a place in it."""
    tokens_per_second: float
    """Tokens generated, over the seconds of the contract's window."""
    cache_usage: float
    """Part of the KV cache in use, 0 to 1."""


@dataclass(frozen=True)
class Shadowed:
    """What one pod says of the copies that it sent to one candidate,
    counted since it began with these."""

    results: Mapping[str, float] = field(default_factory=dict)
    """Copies, by how they ended."""
    compared: Mapping[str, float] = field(default_factory=dict)
    """Answers, by what of them was compared: exact, similarity, finishReason, json."""
    difference: Mapping[str, float] = field(default_factory=dict)
    """Sum of the differences of these answers, each from 0 to 1, by what was compared."""
    fine: Mapping[tuple[str, str], Mapping[float, float]] = field(default_factory=dict)
    """Count up to each bound, by side (stable, candidate) and what (seconds, tokens)."""


@dataclass(frozen=True)
class Figures:
    """What one pod says of itself. Counters count from the pod's start;
    histograms are cumulative, by upper bound."""

    download: Download | None = None
    """While the pod fetches its model."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Version by name, of the adapters that answer."""
    adapter_failures: Mapping[str, str] = field(default_factory=dict)
    """Reason by name, of the adapters whose wanted version could not be loaded."""
    requests: float = 0
    """Answers of generation endpoints."""
    errors: float = 0
    """Answers with a status of 500 or above."""
    first_token: Mapping[float, float] = field(default_factory=dict)
    """Count of times to the first token up to each bound, in seconds."""
    inter_token: Mapping[float, float] = field(default_factory=dict)
    """Count of times between two tokens up to each bound, in seconds."""
    shadowed: Mapping[str, Shadowed] = field(default_factory=dict)
    """What came of the copies that the pod has sent, by candidate: the beginning of the names of
    another revision's pods, or the name by which pods know a candidate of an adapter."""
    token_gap: Mapping[float, float] | None = None
    """Count of times between two tokens up to each of the fine bounds, in seconds. None: an older
    runtime, which has no fine bounds."""
    answer_tokens: Mapping[float, float] | None = None
    """Count of answers with up to each bound of tokens. None: an older runtime."""
    memory_bytes: float | None = None
    """Memory in use, of the GPU where there is one, else of the processes. None: an older
    runtime."""
    load: Load | None = None
    """None while no model is loaded."""


def pod_ended(pod: Manifest) -> bool:
    """Whether the pod has ended: it was evicted, refused by its node, or is done.
    Such a pod stays listed but counts as no pod."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def pod_ready(pod: Manifest) -> bool:
    """Whether the pod says that it is ready, and neither leaves nor is at its end."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp") or pod_ended(pod):
        return False
    return any(
        c.get("type") == "Ready" and c.get("status") == "True"
        for c in status.get("conditions") or []
    )


NO_POD = "no pod of the candidate is ready yet"
"""What evidence of answers waits for."""


@dataclass(frozen=True)
class SmokeOutcome:
    """What became of one ConfigMap's smoke prompts, on one pod or on all together."""

    passed: int = 0
    """Prompts that were answered as expected."""
    failures: tuple[str, ...] = ()
    """One sentence for each prompt that was not."""
    waiting: str = ""
    """Why there is no outcome yet."""
    unusable: bool = False
    """There is none until somebody mends the ConfigMap."""
    pods: int = 0
    """Pods that have answered all of them as expected."""


@dataclass(frozen=True)
class Measured:
    """What a Prometheus query answered."""

    value: float | None = None
    """None with nothing to wait for: the query found no samples."""
    told: bool = False
    """Whether the figure may be told, because it belongs to the namespace that asked."""
    waiting: str = ""
    """Why there is no answer yet."""


@dataclass(frozen=True)
class ProbeOutcome:
    """What became of one load probe."""

    blocks: tuple[tuple[LoadFigures, LoadFigures | None], ...] = ()
    """In turns: the candidate's pod and stable's. None: `before` is compared with."""
    before: LoadStatus | None = None
    """Stable's figures of its own promotion, where none of its pods could be asked."""
    waiting: str = ""
    """Why there is no outcome yet."""
    message: str = ""
    """Why there are no figures and will be none."""
    kept: GateVerdict | None = None
    """What the status says of it, where it was made by another process of the operator."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.
    It is too good by chance in one of 20 cases, and too bad in one of 100, at most."""

    figure: float
    low: float
    high: float


@dataclass(frozen=True)
class Pods:
    """Addresses of the pods that an evaluation asks."""

    candidate: tuple[str, ...] = ()
    stable: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationOutcome:
    """What became of one evaluation."""

    score: Estimate | None = None
    """Score of the candidate."""
    drop: Estimate | None = None
    """Drop of the scores below stable's; None where stable could not be asked."""
    samples: int = 0
    """Records that were judged."""
    message: str = ""
    """Details for the reader: dataset, run, what was not judged."""
    waiting: str = ""
    """Why there is no outcome yet."""
    kept: GateVerdict | None = None
    """What the status says of it already."""


@dataclass(frozen=True)
class Evidence:
    """What gates are judged by."""

    revision: str = ""
    """The candidate that it is about."""
    traffic: Mapping[str, GateVerdict] = field(default_factory=dict)
    """By gates.key: results of the gates that judge by traffic."""
    smoke: Mapping[str, SmokeOutcome] = field(default_factory=dict)
    """By ConfigMap."""
    queries: Mapping[PrometheusQuery, Measured] = field(default_factory=dict)
    evaluations: Mapping[str, EvaluationOutcome] = field(default_factory=dict)
    """By gates.key."""
    shadow: Mapping[str, GateVerdict] = field(default_factory=dict)
    """By gates.key: results of the gates that judge copies of requests."""
    probes: Mapping[LoadProbe, ProbeOutcome] = field(default_factory=dict)


@dataclass(frozen=True)
class RevisionChildren:
    """What there is of one revision in the cluster."""

    revision: str
    deployment: Manifest | None
    config: Manifest | None
    pods: tuple[Manifest, ...] = ()

    @cached_property
    def ready_pods(self) -> tuple[Manifest, ...]:
        """Pods that are ready and stay, by their own word. One look asks for them many times."""
        return tuple(pod for pod in self.pods if pod_ready(pod))

    @property
    def ready(self) -> int:
        """Ready pods: as many as both the pods themselves and the Deployment say.

        Neither count is enough alone. A Deployment's count outlives pods until its controller looks
        again, and counts for nothing while it is older than the specification. A pod's own word
        outlives a Deployment that has given it up.
        """
        status = (self.deployment or {}).get("status", {})
        generation = (self.deployment or {}).get("metadata", {}).get("generation")
        counted = (
            int(status.get("readyReplicas") or 0)
            if status.get("observedGeneration") == generation
            else 0
        )
        return min(counted, len(self.ready_pods))

    @property
    def answering(self) -> int:
        """Pods that are ready and stay, by their own word:
        unlike `ready` it does not blink when pods are ordered."""
        return min(self.wanted, len(self.ready_pods))

    @property
    def wanted(self) -> int:
        return int((self.deployment or {}).get("spec", {}).get("replicas") or 0)

    @property
    def replicas(self) -> int:
        return int((self.deployment or {}).get("status", {}).get("replicas") or 0)


@dataclass(frozen=True)
class DigestedKey:
    """An ApiKey together with the digest of its key for one deployment."""

    key_id: str
    digest: str
    meta: Meta
    spec: ApiKeySpec
    status: ApiKeyStatus = field(default_factory=ApiKeyStatus)


@dataclass(frozen=True)
class Given:
    """What the pods of one LLMDeployment were given: the key file as it was last written."""

    digest: str
    """Digest of the Secret's content."""
    records: Mapping[str, KeyRecord]
    """By `namespace/name` of the ApiKey."""
    left_out: frozenset[str] = frozenset()
    """ApiKeys for which it has no room."""
    adapters: bool = False
    """Whether it lists adapters for pods that fetch them by themselves,
    as an earlier operator began to do."""
    trouble: str = ""
    """Why it can't be read, or was not written the last time."""

    def record(self, owner: Meta) -> KeyRecord | None:
        """What the pods know of an ApiKey."""
        return self.records.get(f"{owner.namespace}/{owner.name}")


@dataclass(frozen=True)
class AdapterSpread:
    """In which ready pods an adapter's candidate is loaded."""

    loaded: Mapping[str, list[Manifest]]
    """By revision."""
    behind: str
    """Why it is not loaded in all pods; empty where it is."""
    failed: Mapping[str, str]
    """Reason by pod, of those that can't load it."""
    ready: int
    """Pods that are to load it."""

    @property
    def pods(self) -> int:
        return sum(map(len, self.loaded.values()))


@dataclass(frozen=True)
class AdapterVersions:
    """The versions of one adapter of the specification."""

    serves: AdapterStatus | None
    """The version that clients get. None: no version yet."""
    candidate: AdapterCandidate | None = None
    """The version that is judged, or was refused."""
    spread: AdapterSpread | None = None
    """Where the judged version is loaded."""
    deadline: datetime | None = None
    """When the judged version must have got further. None: it does not wait."""
    late: bool = False
    """Whether it has got no further in that time, and is tried on."""

    @property
    def judged(self) -> AdapterCandidate | None:
        """What pods are to load beside what serves."""
        return self.candidate if self.candidate and self.candidate.outcome is None else None


@dataclass(frozen=True)
class Observed:
    """Everything that a plan for one LLMDeployment is made from."""

    meta: Meta
    spec: LLMDeploymentSpec
    status: LLMDeploymentStatus
    resolution: Resolution
    connection: Connection | None
    revisions: dict[str, RevisionChildren]
    children: tuple[Manifest, ...]
    """All objects that this LLMDeployment owns, Secrets excepted."""
    image: str
    """The runtime image for revisions made from now on, where the specification names none."""
    keys: tuple[DigestedKey, ...] = ()
    faults: dict[str, Fault] = field(default_factory=dict)
    """By revision: what keeps its pods from getting ready."""
    database_missing: str = ""
    """The Secret, or key in one, that spec.database names and that is missing;
    and the command that makes it."""
    service_monitors: bool = False
    """Whether the cluster knows ServiceMonitors."""
    autoscaler: Manifest | None = None
    """The HorizontalPodAutoscaler that the operator has made."""
    scaled_objects: tuple[Manifest, ...] | None = None
    """KEDA's ScaledObjects of the namespace, whoever made them; None without KEDA."""
    metrics_advice: str = ""
    """What to do where autoscalers get no metrics of pods; empty: this operator serves them."""
    adapters: tuple[ResolvedAdapter, ...] = ()
    """In the order of the specification."""
    adapter_versions: tuple[AdapterVersions, ...] = ()
    """The versions of each adapter, as its gates allow them, once they have judged in this look."""
    adapter_evidence: Mapping[str, Evidence] = field(default_factory=dict)
    """Evidence about candidates of adapters, by the name under which pods load them."""
    adapters_beside_keys: bool = False
    """Whether an earlier operator gave pods adapters,
    and the credentials to fetch them, beside their keys."""
    connections: Mapping[str, Connection] = field(default_factory=dict)
    """Connections that adapters come from, as far as the operator knows them."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """Figures of the pods that were asked and answered, by pod name."""
    verdict_refusal: str = ""
    """Why the registry takes no verdicts."""
    available: ModelVersion | None = None
    """The version that waits for approval; `resolution` then has the one before it."""
    approval_word: str = ""
    """What the annotation must say for that version."""
    anew: str = ""
    """Mark of a version whose number was registered anew while it was in use."""
    evidence: Evidence = field(default_factory=Evidence)
    """Evidence about the candidate that is under way."""
    fetch_resources: Manifest = field(default_factory=dict)
    """Resources of the fetching container of revisions made from now on,
    where the specification has none."""
    pull_secrets: tuple[str, ...] = ()
    """Image pull secrets of pods whose specification has none."""
    app_armor_profile: str = ""
    """The AppArmor profile of pods of new revisions; empty: none is written."""
    shadow_token: str = field(default="", repr=False)
    """The token that copies of requests for the candidate carry; empty where none are made."""
    operator_key: DigestedKey | None = None
    """The operator's own key, by which it asks smoke prompts."""
    http_routes: bool = False
    """Whether the cluster knows the Gateway API's HTTPRoutes."""
    coming: Mapping[str, str] = field(default_factory=dict)
    """By name of a pod that finds no node:
    what a cluster autoscaler says about the node that it adds."""

    @property
    def serving_adapters(self) -> list[AdapterStatus]:
        """The version of each adapter that clients are to get. One that never had any is left
        out."""
        return [each.serves for each in self.adapter_versions if each.serves is not None]

    @property
    def judged_adapters(self) -> list[AdapterCandidate]:
        """The versions of adapters that pods are to load for the operator alone."""
        return [each.judged for each in self.adapter_versions if each.judged is not None]


@dataclass(frozen=True)
class Occurrence:
    """A change of state that becomes a Kubernetes Event."""

    type: str
    reason: str
    message: str
    once: bool = False
    """Whether it is about one moment. Such an Event is written once and never counted."""


@dataclass(frozen=True)
class Verdict:
    """How a roll-out ended, for the registry that the version came from."""

    model: str
    """The registered model."""
    version: str
    outcome: str
    """Promoted or Failed."""
    message: str
    revision: str


@dataclass(frozen=True)
class Plan:
    """The wanted state: objects to apply and to delete, the status, Events,
    and when to look again."""

    key_file: Manifest
    """The Secret with the keys. It goes first: a revocation waits for no other object."""
    adapters: Manifest | None
    """The Secret with the adapters, where pods have a container that fetches some."""
    objects: tuple[Manifest, ...]
    delete: tuple[Manifest, ...]
    status: LLMDeploymentStatus
    occurrences: tuple[Occurrence, ...] = ()
    requeue_seconds: float | None = None


@dataclass(frozen=True)
class ObservedKey:
    """Everything that a plan for one ApiKey is made from."""

    meta: Meta
    spec: ApiKeySpec
    status: ApiKeyStatus
    secret: Manifest | None
    deployments: tuple[Meta, ...]
    """All LLMDeployments of the namespace."""
    now: datetime
    tiers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of each LLMDeployment's tiers."""
    given: Mapping[str, Given] = field(default_factory=dict)
    """By LLMDeployment that has a key file, of those that the key opens or has opened."""
