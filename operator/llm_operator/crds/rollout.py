"""How a new revision reaches the clients: strategy, canary steps, gates."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llm_operator.crds.common import Line, ObjectName
from llm_operator.crds.schema import Section, rules

MAX_STEPS = 10
MAX_GATES = 10
JUDGED_SECONDS = 60
"""How long a candidate is judged by its traffic where no step says how long."""
Ratio = Annotated[float, Field(ge=0.01, le=1000)]


class CanaryStep(Section):
    """A share of the traffic, and how long the candidate has it at least."""

    weight: Annotated[int, Field(ge=1, le=99)]
    """Percent of the traffic that the candidate gets at most."""
    hold_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    """How long the step lasts once its pods are ready."""


DEFAULT_STEPS = (CanaryStep(weight=10, hold_seconds=120), CanaryStep(weight=50, hold_seconds=300))


class ParentReference(Section):
    """A Gateway."""

    name: ObjectName
    """Its name."""
    namespace: Annotated[ObjectName, Field(max_length=63)] | None = None
    """Its namespace; absent: this one."""
    section_name: Line | None = None
    """One of its listeners; absent: all."""


class HttpRouteSpec(Section):
    """An HTTPRoute of the Gateway API in front of the Services."""

    parent_refs: Annotated[tuple[ParentReference, ...], Field(min_length=1, max_length=8)]
    """The Gateways that it attaches to."""
    hostnames: Annotated[tuple[Line, ...], Field(max_length=16)] | None = None
    """The host names that it answers for; absent: all of the Gateway's."""


class CanarySpec(Section):
    """Traffic in steps."""

    steps: (
        Annotated[
            tuple[CanaryStep, ...],
            Field(
                min_length=1,
                max_length=MAX_STEPS,
                json_schema_extra=rules(
                    (
                        "self.map(step, step.weight).isSorted() && "
                        "self.all(a, self.exists_one(b, b.weight == a.weight))",
                        "weights must increase from step to step",
                    )
                ),
            ),
        ]
        | None
    ) = None
    """Absent: 10 % for 120 s, then 50 % for 300 s."""
    http_route: HttpRouteSpec | None = None
    """Exact weights by an HTTPRoute. Absent: the share follows from the numbers of pods."""


class BlueGreenSpec(Section):
    """The switch."""

    hold_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long the old pods stay ready after the switch, to turn back to if a gate fails or a new pod crashes. Absent:
    60 where there are gates other than smoke prompts, else 0."""


class SmokePrompts(Section):
    """Prompts with expected answers, asked before the candidate gets traffic."""

    config_map: ObjectName
    """A ConfigMap of this namespace: each entry is a prompt, docs/rollouts.md shows its form."""


class PrometheusQuery(Section):
    """A figure that Prometheus computes."""

    server: Annotated[str, Field(max_length=512, pattern=r"^https?://")] | None = None
    """Its address, one of prometheus.allowed in the operator's configuration; absent: prometheus.url there."""
    query: Annotated[str, Field(min_length=1, max_length=2048)]
    """PromQL with one number as its answer; {candidate} and {stable} stand for the two revisions."""
    max: Annotated[float, Field(ge=-1e15, le=1e15)]
    """The candidate fails above this."""


class GateSpec(Section):
    """One thing that the candidate must show. Exactly one kind per entry."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "[has(self.smokePrompts), has(self.maxErrorRate), has(self.maxTimeToFirstTokenP95Ratio), "
                "has(self.maxInterTokenP95Ratio), has(self.prometheusQuery)].filter(x, x).size() == 1",
                "write exactly one of smokePrompts, maxErrorRate, maxTimeToFirstTokenP95Ratio, maxInterTokenP95Ratio, "
                "prometheusQuery per entry",
            )
        )
    )
    smoke_prompts: SmokePrompts | None = None
    """Answers must be as expected."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the candidate's answers with a status of 500 or above: 0.01 is one in a hundred."""
    max_time_to_first_token_p95_ratio: Ratio | None = None
    """95th percentile of the time to the first token, candidate over stable: 1.3 is 30 % slower."""
    max_inter_token_p95_ratio: Ratio | None = None
    """95th percentile of the time between two tokens, candidate over stable."""
    prometheus_query: PrometheusQuery | None = None
    """A figure that Prometheus computes."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Samples that each side must have before error rate and ratios are judged."""


class RolloutSpec(Section):
    """How a new version or a changed specification reaches the clients."""

    strategy: Literal["Auto", "Rolling", "BlueGreen", "Canary", "Recreate"] = "Auto"
    """BlueGreen: all new pods beside the old, then switch. Rolling: pod by pod. Canary: traffic in steps. Recreate: the
    old go first, an interruption. Auto: BlueGreen where both fit, else Rolling; a single pod waits for room, as Auto
    never interrupts."""
    canary: CanarySpec | None = None
    """The steps of strategy Canary."""
    blue_green: BlueGreenSpec | None = None
    """The switch of strategy BlueGreen, also where Auto has chosen it."""
    gates: Annotated[tuple[GateSpec, ...], Field(max_length=MAX_GATES)] | None = None
    """What a candidate must show; one that fails is rolled back at once."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    """How long running streams may go on in a pod that is told to stop."""
    progress_deadline_seconds: Annotated[int, Field(ge=10, le=86_400)] = 1800
    """A new revision that makes no progress in this time has failed; the old one keeps serving. Holds do not count."""
    revision_history_limit: Annotated[int, Field(ge=0, le=20)] = 5
    """How many old revisions are kept, without pods, to go back to."""

    @property
    def steps(self) -> tuple[CanaryStep, ...]:
        """The canary's steps as they apply."""
        return (self.canary.steps if self.canary else None) or DEFAULT_STEPS

    @property
    def switch_hold_seconds(self) -> int:
        """How long BlueGreen judges the candidate by its traffic."""
        if self.blue_green is not None and self.blue_green.hold_seconds is not None:
            return self.blue_green.hold_seconds
        return JUDGED_SECONDS if any(gate.smoke_prompts is None for gate in self.gates or ()) else 0

    @property
    def http_route(self) -> HttpRouteSpec | None:
        """The HTTPRoute that is asked for."""
        return self.canary.http_route if self.canary else None

    @property
    def smoke_maps(self) -> tuple[str, ...]:
        """The ConfigMaps with smoke prompts, each once."""
        return tuple(dict.fromkeys(gate.smoke_prompts.config_map for gate in self.gates or () if gate.smoke_prompts))
