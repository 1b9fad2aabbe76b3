"""What the operator reports about its resources."""

from typing import Annotated, Literal

from pydantic import Field

from llm_operator.crds.common import Conditions, Line, Short, Text, cut
from llm_operator.crds.schema import Section

Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


class AvailableVersion(Section):
    """A version that waits for somebody's word."""

    version: Short
    """Its number."""
    registered_at: Time | None = None
    """When the registry says that it was made."""
    since: Time | None = None
    """When it was first seen under the reference."""


class ModelStatus(Section):
    """The version that the reference in the specification was last resolved to."""

    name: Annotated[str, Field(max_length=1024)]
    """The registered model; for a uri, the repository or folder."""
    version: Short
    """Its version; for a uri, the first digits of the commit, or of a digest of the address."""
    alias: Annotated[str, Field(max_length=256)] | None = None
    """The alias that named it."""
    stage: Short | None = None
    """The stage it was in."""
    connection: Short | None = None
    """The MLflow server it was found on."""
    source: Annotated[str, Field(max_length=2048), cut(2048)] | None = None
    """Where its artifacts are."""
    run_id: Annotated[Short, cut(63)] | None = None
    """The run that made it."""
    registered_at: Time | None = None
    """When the registry says that it was made: another moment under the same number is another version."""
    anew: Short | None = None
    """Of a number that was registered anew while it was in use: tells its revisions from those before."""
    resolved_at: Time | None = None
    """When this version was first seen under the reference."""
    available: AvailableVersion | None = None
    """What the reference stands for now, while updatePolicy Manual keeps it from being rolled out."""


class AdapterStatus(Section):
    """The version that an adapter's reference was last resolved to: what the pods are told to load."""

    name: Short
    """The adapter."""
    model: Annotated[str, Field(max_length=256)]
    """The registered model."""
    version: Short
    """Its version."""
    alias: Annotated[str, Field(max_length=256)] | None = None
    """The alias that named it."""
    stage: Short | None = None
    """The stage it was in."""
    connection: Short = "default"
    """The MLflow server it was found on."""
    sub_path: Annotated[str, Field(max_length=1024)] | None = None
    """The folder inside its artifacts."""
    ready_replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Ready pods in which this version answers."""
    resolved_at: Time | None = None
    """When this version was first seen under the reference."""


class RevisionStatus(Section):
    """One revision: the resolved version together with everything that shapes its pods."""

    revision: Short
    """Its id; its Deployment and ConfigMap are named <name>-<revision>."""
    version: Short
    """The model version it serves."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """The runtime image, pinned when the revision was made."""
    started_at: Time | None = None
    """When its roll-out began; for the stable revision, when it took over."""


class GateVerdict(Section):
    """What one gate says of the candidate."""

    name: Annotated[str, Field(max_length=320), cut(320)]
    """The gate."""
    state: Literal["Passed", "Failed", "Waiting", "TooFewSamples"]
    """Waiting: no answer yet. TooFewSamples: not judged, it counts as passed when the step's hold is over."""
    figure: Annotated[str, Field(max_length=64)] | None = None
    """What was measured."""
    threshold: Annotated[str, Field(max_length=64)] | None = None
    """What is allowed."""
    message: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """What lies behind it."""


class CandidateStatus(RevisionStatus):
    """The revision that is being rolled out, or that failed to."""

    strategy: Literal["Rolling", "BlueGreen", "Canary", "Recreate"] | None = None
    """How it is rolled out."""
    strategy_reason: Annotated[str, Field(max_length=1024), cut(1024)] | None = None
    """Why so."""
    surge: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Rolling: pods beyond spec.replicas; 0 where the cluster has no room for one."""
    replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Rolling: how many pods it has been given so far."""
    step: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Canary: the step that runs, from 1; one more than there are steps while it grows to all pods."""
    weight: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Percent of the traffic that it gets at most now; 0: none. BlueGreen: 100 once the Service has turned to it."""
    step_started_at: Time | None = None
    """When the hold of the step, or after the switch, began: its pods were ready."""
    traffic_since: Time | None = None
    """When it first got traffic."""
    restarts: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """How often its containers had restarted by then: one more is a crash."""
    progressed_at: Time | None = None
    """When it last got further; its deadline counts from here."""
    paused: bool | None = None
    """The annotation says pause: it stays where it is."""
    verdict: Annotated[tuple[GateVerdict, ...], Field(max_length=10)] | None = None
    """What each gate says of it."""

    outcome: Literal["Failed"] | None = None
    """Failed: it was given up; a new version or a changed specification is tried afresh."""
    reason: Annotated[Short, cut(63)] | None = None
    """Why it failed."""
    message: Annotated[Text, cut(4096)] | None = None
    """The pod's own report."""


class HistoryEntry(Section):
    """A revision that ended."""

    revision: Short
    """Its id."""
    version: Short
    """The model version it served."""
    started_at: Time | None = None
    """When it began."""
    ended_at: Time | None = None
    """When it ended."""
    outcome: Literal["Superseded", "RolledBack", "Failed", "Replaced"]
    """Superseded: served until the next took over. RolledBack: served until the annotation rollback-to took it back.
    Replaced: given up for a newer one before it served."""
    message: Annotated[Text, cut(1024)] | None = None
    """Why."""

    @property
    def served(self) -> bool:
        """Whether it has stood behind the Service."""
        return self.outcome in ("Superseded", "RolledBack")


class DirectiveStatus(Section):
    """An annotation of a person, as it was understood when it was first seen."""

    value: Annotated[str, Field(max_length=256), cut(256)]
    """Its value."""
    revision: Annotated[Short, cut(63)] | None = None
    """What it is about: it has no effect on any other roll-out. Absent: on nothing."""
    instead_of: Short | None = None
    """rollback-to: the revision that was wanted then; a newer wish ends the roll-back."""


class LLMDeploymentStatus(Section):
    """What is the case, as the operator last saw it."""

    observed_generation: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """The metadata.generation that this status is about."""
    conditions: Conditions = ()
    """Ready (the summary), Reconciling, Stalled, and one for each part of the work."""
    model: ModelStatus | None = None
    """What the model reference stands for."""
    adapters: Annotated[
        tuple[AdapterStatus, ...],
        Field(
            max_length=8, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """What the adapters' references stand for."""
    stable: RevisionStatus | None = None
    """The revision that serves."""
    candidate: CandidateStatus | None = None
    """The revision that is being rolled out, or that failed to."""
    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=20)] = ()
    """Earlier revisions, newest first."""
    directive: DirectiveStatus | None = None
    """The annotation llm-operator.dev/rollout."""
    rollback: DirectiveStatus | None = None
    """The annotation llm-operator.dev/rollback-to."""
    replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Pods of the serving revision."""
    ready_replicas: int | None = Field(default=None, json_schema_extra={"format": "int32"})
    """Ready pods of the serving revision."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the pods, for autoscalers."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Where clients inside the cluster reach the endpoint."""


class ApiKeyStatus(Section):
    """What is the case, as the operator last saw it."""

    observed_generation: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """The metadata.generation that this status is about."""
    conditions: Conditions = ()
    """Ready, Reconciling, Stalled."""
    prefix: Short | None = None
    """The public part of the key, as logs show it."""
    secret_name: Line | None = None
    """The Secret that holds the key under `api-key`."""
    issued_at: Time | None = None
    """When the key was made."""
    deployments: Annotated[tuple[Short, ...], Field(max_length=1000)] | None = None
    """The LLMDeployments that take this key."""
