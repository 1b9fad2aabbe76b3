"""The fields of both resources' status."""

from typing import Annotated, Literal

from pydantic import Field

from llm_operator.crds.common import Conditions, Line, Short, Text, cut
from llm_operator.crds.rollout import StrategyName
from llm_operator.crds.schema import Section

Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class AvailableVersion(Section):
    """A version that waits for a person's approval."""

    version: Short
    """Number of the version in the registry."""
    registered_at: Time | None = None
    """Time at which the version was registered, according to the registry."""
    since: Time | None = None
    """Time at which the version was first seen under the reference."""


class ModelStatus(Section):
    """The version that the reference in the specification last resolved to."""

    name: Annotated[str, Field(max_length=1024)]
    """Name of the registered model; for a uri, the repository or folder."""
    version: Short
    """Number of the version;
    for a uri, the first digits of the commit, or of a digest of the address."""
    alias: Annotated[str, Field(max_length=256)] | None = None
    """Alias that the version was found by."""
    stage: Short | None = None
    """Stage that the version was found in."""
    connection: Short | None = None
    """MLflow server that the version was found on, by the connection's name."""
    source: Annotated[str, Field(max_length=2048), cut(2048)] | None = None
    """Address of the version's artifacts."""
    run_id: Annotated[Short, cut(63)] | None = None
    """MLflow run that made the version."""
    registered_at: Time | None = None
    """Time at which the version was registered, according to the registry. Another time under the
    same number is another version."""
    anew: Short | None = None
    """Mark of a number that was registered anew while it was in use,
    which tells its revisions from those before."""
    resolved_at: Time | None = None
    """Time at which this version was first seen under the reference."""
    available: AvailableVersion | None = None
    """Version that the reference points to now,
    while updatePolicy Manual keeps it from being rolled out."""


class AdapterStatus(Section):
    """The version that an adapter's reference last resolved to, which the pods are told to load."""

    name: Short
    """Name of the adapter in the specification."""
    model: Annotated[str, Field(max_length=256)]
    """Name of the registered model."""
    version: Short
    """Number of the version in the registry."""
    alias: Annotated[str, Field(max_length=256)] | None = None
    """Alias that the version was found by."""
    stage: Short | None = None
    """Stage that the version was found in."""
    connection: Short = "default"
    """MLflow server that the version was found on, by the connection's name."""
    sub_path: Annotated[str, Field(max_length=1024)] | None = None
    """Folder inside the version's artifacts that is the adapter."""
    registered_at: Time | None = None
    """Time at which the version was registered, according to the registry. Another time under the
    same number is another version."""
    anew: Short | None = None
    """Mark of a number that was registered anew while it was in use,
    which tells its files from those before."""
    ready_replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Number of ready pods in which this version answers."""
    resolved_at: Time | None = None
    """Time at which this version was first seen under the reference;
    of one with gates, at which it passed them."""
    judged: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """Gates that judged the version before it answered. Absent: none did."""

    @property
    def identity(self) -> tuple[str, str, str, str | None, str | None]:
        """What tells an adapter's versions apart."""
        return self.connection, self.model, self.version, self.sub_path, self.anew


class RevisionStatus(Section):
    """A revision: a resolved version together with everything that shapes its pods."""

    revision: Short
    """Id of the revision; its Deployment and ConfigMap are named `<name>-<revision>`."""
    version: Short
    """Model version that the revision serves."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Runtime image of the revision, fixed when it was made."""
    started_at: Time | None = None
    """Time at which its roll-out began; for the stable revision, at which it took over."""


class LoadFigure(Section):
    """One figure of a load probe, over its blocks."""

    middle: Annotated[float, Field(gt=0)]
    """Geometric mean of the blocks."""
    spread: Annotated[float, Field(ge=0)]
    """Standard deviation of the blocks' logarithms."""
    blocks: Annotated[int, Field(ge=2, le=100, json_schema_extra={"format": "int32"})]
    """Number of the blocks."""


class LoadStatus(Section):
    """What one pod of a revision did under the load of a probe."""

    concurrency: Annotated[int, Field(json_schema_extra={"format": "int32"})]
    """Number of requests that ran at the same time."""
    prompt_tokens: Annotated[int, Field(json_schema_extra={"format": "int32"})]
    """Tokens of each prompt."""
    max_tokens: Annotated[int, Field(json_schema_extra={"format": "int32"})]
    """Tokens of each answer."""
    first_token_seconds: LoadFigure | None = None
    """Time to the first token."""
    inter_token_seconds: LoadFigure | None = None
    """Time between two tokens of one answer."""
    seconds_per_token: LoadFigure | None = None
    """Time for a token of all answers together."""


class GateVerdict(Section):
    """Result of one gate for the candidate."""

    name: Annotated[str, Field(max_length=320), cut(320)]
    """Name of the gate, such as `maxErrorRate`."""
    gate_digest: Short | None = None
    """Digest of the gate as it was written when it gave this result."""
    state: Literal["Passed", "Failed", "Waiting", "Inconclusive"]
    """Waiting: there is no result yet. Inconclusive: neither surely passed nor surely failed;
    rollout.onInconclusive decides."""
    estimate: Annotated[str, Field(max_length=64)] | None = None
    """Value that was measured for the candidate."""
    threshold: Annotated[str, Field(max_length=64)] | None = None
    """Value that the gate allows."""
    low: Annotated[str, Field(max_length=64)] | None = None
    """Lower end of the interval: the true value is below it in at most one of 100 roll-outs,
    all gates together."""
    high: Annotated[str, Field(max_length=64)] | None = None
    """Upper end of the interval: the true value is above it in at most one of 20 roll-outs."""
    samples: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """Number of the candidate's samples; of smoke prompts, number of its pods that passed."""
    stable_samples: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """Number of the stable revision's samples."""
    since: Time | None = None
    """Time at which the operator began to count."""
    load: LoadStatus | None = None
    """Figures of the candidate under the load of a probe."""
    message: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """Details behind the result, for people."""


class StableStatus(RevisionStatus):
    """The revision that serves."""

    judged: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """Gates that judged the revision before it was promoted, and gates that did not."""
    loads: Annotated[tuple[LoadStatus, ...], Field(max_length=10)] | None = None
    """Figures of its own load probes. The next candidate is compared with them where no pod of this
    revision can be asked."""


class AdapterCandidate(AdapterStatus):
    """A version of an adapter that is behind its gates, or was refused by them.
    It answers no client."""

    resolved_at: Time | None = None
    """Time at which this version was first seen under the reference."""
    ready_replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Number of ready pods that have loaded the version."""
    gates: Annotated[tuple[GateVerdict, ...], Field(max_length=4)] = ()
    """Result of each gate for the version."""
    waiting_since: Time | None = None
    """Time since which the version waits and gets no further, as a pod does not load it or a gate
    has no result; rollout.progressDeadlineSeconds counts from here."""
    shadowed_since: Time | None = None
    """Time since which the version is sent copies of requests;
    the adapter's shadow.holdSeconds counts from here."""
    undecided_since: Time | None = None
    """Time at which a gate was inconclusive and none was awaited any more;
    rollout.maxHoldSeconds counts from here."""
    outcome: Literal["Failed"] | None = None
    """Failed: the version was refused. It is judged anew when the reference has stood for another
    version, or when the adapter's gates are changed."""
    message: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """By what the version was refused: a gate, rollout.onInconclusive or
    rollout.progressDeadlineSeconds."""


class CandidateStatus(RevisionStatus):
    """The revision that is being rolled out, or whose roll-out failed."""

    strategy: StrategyName | None = None
    """Strategy by which the candidate is rolled out."""
    strategy_reason: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """Explanation of why this strategy is used."""
    surge: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Rolling: number of pods beyond spec.replicas; 0 where the cluster has no room for one."""
    replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Rolling: number of pods that the candidate was given so far."""
    step: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Canary: number of the current step, from 1; one more than there are steps while the candidate
    grows to all pods."""
    weight: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Largest share of the traffic that the candidate gets now, in percent; 0: none. BlueGreen: 100
    once the Service has switched to it."""
    shadowed_since: Time | None = None
    """Time since which the candidate is sent copies of requests;
    rollout.shadow.holdSeconds counts from here."""
    step_started_at: Time | None = None
    """Time at which the hold of the step,
    or after the switch, began, as all its pods were ready."""
    undecided_since: Time | None = None
    """Time at which the hold was over and a gate was inconclusive;
    rollout.maxHoldSeconds counts from here."""
    traffic_since: Time | None = None
    """Time at which the candidate first got traffic."""
    restarts: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Number of container restarts before the candidate first got traffic; one more is a crash."""
    progressed_at: Time | None = None
    """Time at which the roll-out last made progress; its deadline counts from here."""
    paused: bool | None = None
    """Whether the roll-out stays where it is: the annotation llm-operator.dev/rollout says so, or
    no pods are wanted."""
    gates: Annotated[tuple[GateVerdict, ...], Field(max_length=10)] | None = None
    """Result of each gate for the candidate."""

    outcome: Literal["Failed"] | None = None
    """Failed: the candidate was given up;
    a new version or a changed specification is tried afresh."""
    reason: Annotated[Short, cut(63)] | None = None
    """Cause of the failure in one CamelCase word."""
    message: Annotated[Text, cut(4096)] | None = None
    """Explanation of the failure, as the pod reported it."""


class HistoryEntry(Section):
    """A revision that no longer serves, or never did."""

    revision: Short
    """Id of the earlier revision."""
    version: Short
    """Model version that the revision served."""
    started_at: Time | None = None
    """Time at which the revision began."""
    ended_at: Time | None = None
    """Time at which the revision ended."""
    outcome: Literal["Superseded", "RolledBack", "Failed", "Replaced"]
    """Superseded: it served until the next took over. RolledBack: it served until the annotation
    rollback-to took it back. Failed: its roll-out failed. Replaced: it was given up for a newer one
    before it served."""
    message: Annotated[Text, cut(1024)] | None = None
    """Explanation of why the revision ended."""
    judged: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """Gates that judged the revision before it was promoted, and gates that did not."""

    @property
    def served(self) -> bool:
        """Whether it has stood behind the Service."""
        return self.outcome in ("Superseded", "RolledBack")


class DirectiveStatus(Section):
    """An annotation that a person wrote, as it was understood when it was first seen."""

    value: Annotated[str, Field(max_length=256), cut(256)]
    """Value of the annotation."""
    revision: Annotated[Short, cut(63)] | None = None
    """Revision that the annotation is about;
    it has no effect on any other roll-out. Absent: it is about none."""
    instead_of: Short | None = None
    """Revision that was wanted when rollback-to was written; a newer wish ends the rollback."""


class LLMDeploymentStatus(Section):
    """State of the LLMDeployment as the operator last saw it."""

    observed_generation: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """The metadata.generation that this status was computed from."""
    conditions: Conditions = ()
    """Conditions Ready (the summary), Reconciling, Stalled, and one for each part of the work."""
    model: ModelStatus | None = None
    """Version that the model's reference last resolved to."""
    adapters: Annotated[
        tuple[AdapterStatus, ...],
        Field(
            max_length=8,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Versions that the adapters' references last resolved to;
    of an adapter with gates, the last that passed them."""
    adapter_candidates: Annotated[
        tuple[AdapterCandidate, ...],
        Field(
            max_length=8,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Versions of adapters that are behind their gates, or were refused by them."""
    stable: StableStatus | None = None
    """The revision that serves."""
    candidate: CandidateStatus | None = None
    """The revision that is being rolled out, or whose roll-out failed."""
    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=20)] = ()
    """Earlier revisions, the newest first."""
    directive: DirectiveStatus | None = None
    """Annotation llm-operator.dev/rollout, as it was understood."""
    rollback: DirectiveStatus | None = None
    """Annotation llm-operator.dev/rollback-to, as it was understood."""
    replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Number of pods of the serving revision."""
    ready_replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Number of ready pods of the serving revision."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the pods, for autoscalers."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Address under which clients inside the cluster reach the endpoint."""


class ApiKeyStatus(Section):
    """State of the ApiKey as the operator last saw it."""

    observed_generation: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """The metadata.generation that this status was computed from."""
    conditions: Conditions = ()
    """Conditions Ready (the summary), Reconciling and Stalled."""
    prefix: Short | None = None
    """Public part of the key, as logs show it."""
    secret_name: Line | None = None
    """Secret that holds the key under `api-key`."""
    issued_at: Time | None = None
    """Time at which the key was made."""
    deployments: Annotated[tuple[Short, ...], Field(max_length=1000)] | None = None
    """Names of the LLMDeployments that accept this key."""
