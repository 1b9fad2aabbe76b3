"""The types of spec.pod that say where pods may run: tolerations, affinity and spread, with
Kubernetes' own names."""

from typing import Annotated, Literal

from pydantic import Field

from llm_operator.crds.common import (
    LabelMap,
    Line,
    Short,
)
from llm_operator.crds.schema import Section

Key = Annotated[str, Field(max_length=317)]
Weight = Annotated[int, Field(ge=1, le=100)]


class Toleration(Section):
    """Allows the pods on nodes with a matching taint."""

    key: Key | None = None
    """Key of the taint. Absent, with operator Exists: every taint matches."""
    operator: Literal["Exists", "Equal"] | None = None
    """How the taint is matched: Equal compares `value`, Exists does not. Absent: Equal."""
    value: Line | None = None
    """Value of the taint, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Absent: all effects match."""
    toleration_seconds: (
        Annotated[int, Field(ge=0, le=2**53, json_schema_extra={"format": "int64"})] | None
    ) = None
    """Seconds for which a NoExecute taint is tolerated. Absent: for ever."""


class NodeRequirement(Section):
    """A requirement on a node's labels or fields."""

    key: Key
    """Key of the node's label or field, such as `topology.kubernetes.io/zone`."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the node's value is compared with `values`."""
    values: Annotated[tuple[Short, ...], Field(max_length=32)] | None = None
    """Values to compare with: none for Exists and DoesNotExist, one whole number for Gt and Lt."""


Requirements = Annotated[tuple[NodeRequirement, ...], Field(max_length=16)]


class NodeTerm(Section):
    """Requirements that a node must all meet."""

    match_expressions: Requirements | None = None
    """Requirements on the node's labels."""
    match_fields: Requirements | None = None
    """Requirements on the node's fields (metadata.name)."""


class PreferredNodeTerm(Section):
    """A preference for nodes, with a weight."""

    weight: Weight
    """Weight of this preference beside the others, from 1 to 100."""
    preference: NodeTerm
    """Requirements that a preferred node meets."""


class NodeSelector(Section):
    """A choice of nodes by terms, of which at least one must match."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=16)]
    """Terms, of which a node must match at least one."""


class NodeAffinity(Section):
    """Rules on the nodes that pods are scheduled to."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes that a pod must be scheduled to; it stays pending where there is none."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodeTerm, ...], Field(max_length=16)] | None
    ) = None
    """Nodes that the scheduler prefers, by weight."""


class LabelRequirement(Section):
    """A requirement on an object's labels."""

    key: Key
    """Key of the label, such as `app`."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value is compared with `values`."""
    values: Annotated[tuple[Short, ...], Field(max_length=32)] | None = None
    """Values to compare with: none for Exists and DoesNotExist."""


class LabelSelector(Section):
    """Selects objects by their labels; all requirements must be met."""

    match_labels: LabelMap | None = None
    """Labels that an object must have with exactly these values."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] | None = None
    """Further requirements on the labels, all of which must be met."""


class PodTerm(Section):
    """Other pods, and the area around them that a rule is about."""

    label_selector: LabelSelector | None = None
    """Selects the other pods by their labels."""
    namespaces: Annotated[tuple[Short, ...], Field(max_length=16)] | None = None
    """Namespaces of the other pods. Absent: this one."""
    topology_key: Key
    """Node label whose value makes an area,
    such as `kubernetes.io/hostname` or `topology.kubernetes.io/zone`."""


class PreferredPodTerm(Section):
    """A preference about other pods, with a weight."""

    weight: Weight
    """Weight of this preference beside the others, from 1 to 100."""
    pod_affinity_term: PodTerm
    """Other pods, and the area around them that the preference is about."""


class PodAffinity(Section):
    """Rules on the other pods beside which pods are scheduled."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PodTerm, ...], Field(max_length=16)] | None
    ) = None
    """Rules that must be met; a pod stays pending where they can't be."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredPodTerm, ...], Field(max_length=16)] | None
    ) = None
    """Rules that the scheduler tries to meet, by weight."""


class Affinity(Section):
    """Rules on where pods are scheduled."""

    node_affinity: NodeAffinity | None = None
    """Rules on the nodes that pods are scheduled to."""
    pod_affinity: PodAffinity | None = None
    """Rules that place pods near other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Rules that keep pods away from other pods."""


class TopologySpread(Section):
    """Spreads the pods over areas such as nodes or zones."""

    max_skew: Annotated[int, Field(ge=1, le=2**31 - 1, json_schema_extra={"format": "int32"})]
    """Largest difference in the number of pods between two areas."""
    topology_key: Key
    """Node label whose value makes an area, such as `topology.kubernetes.io/zone`."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """DoNotSchedule: a pod stays pending where `maxSkew` can't be kept. ScheduleAnyway: it is
    scheduled where the difference is least."""
    label_selector: LabelSelector | None = None
    """Selects the pods that are counted. Absent: the pods of this LLMDeployment."""
