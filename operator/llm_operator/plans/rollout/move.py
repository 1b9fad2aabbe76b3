"""The typed values of a strategy's questions and answers: `Move`, a candidate on its way to the
traffic, and `Allocation`, who gets which pods and traffic."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from llm_operator.crds import GateVerdict, StableStatus
from llm_operator.plans.evidence import gates
from llm_operator.plans.rollout.candidate import Candidate
from llm_operator.plans.rollout.situation import Situation
from llm_operator.plans.rollout.states import State

PATIENCE_SECONDS = 30.0
"""How long a pod must have had no place before that counts:
evictions and scale-downs make room in this time."""
HELP_SECONDS = 60.0
"""How long a pod may still have no place after an old pod has had its time to stop."""


@dataclass(frozen=True)
class Lack:
    """A pod of the candidate has no place."""

    message: str
    """What the scheduler or the API server says."""
    freed: bool
    """An old pod that goes may leave the room that is missing."""
    coming: str = ""
    """What a cluster autoscaler says about the node that it adds for the pod."""


@dataclass(frozen=True)
class Move:
    """A candidate on its way to replace the stable revision, if there is one:
    what strategies are asked about."""

    situation: Situation
    stable: StableStatus | None
    candidate: Candidate
    skips: bool = False
    """A person has said that its holds are over."""
    takes_copies: bool = False
    """The candidate's strategy has it wait for copies of requests (Strategy.takes_copies)."""
    lack: Lack | None = None
    """None while all pods of the candidate have a node, or nothing is said."""

    @property
    def old(self) -> str:
        """The stable revision; empty where there is none."""
        return self.stable.revision if self.stable else ""

    @property
    def new(self) -> str:
        """The candidate's revision."""
        return self.candidate.revision

    @property
    def state(self) -> State:
        """Where the candidate is in its life."""
        if self.candidate.outcome is not None:
            return State.FAILED
        wanted = self.situation.wanted
        if wanted is not None and wanted.revision != self.new:
            return State.REPLACED
        if self.candidate.traffic_since is not None:
            return State.TRAFFIC
        return State.READY if self.situation.answering(self.new) else State.STARTING

    @property
    def let_go(self) -> bool:
        """A person or the specification has it go on although gates are undecided."""
        return self.skips or self.situation.spec.on_inconclusive == "Promote"

    @property
    def waited(self) -> float:
        """Seconds since it last got further."""
        return self.situation.since(self.candidate.progressed_at or self.candidate.started_at)

    @property
    def help_seconds(self) -> float:
        """How long it must have waited before stopping old pods may be said to be in vain."""
        return self.situation.spec.drain_seconds + HELP_SECONDS

    @property
    def lasting_lack(self) -> Lack | None:
        """The lack of room, once it has lasted and no node is on its way."""
        found = self.lack
        lasts = found is not None and not found.coming and self.waited >= PATIENCE_SECONDS
        return found if lasts else None

    @property
    def lack_in_vain(self) -> Lack | None:
        """The lack of room that stays although old pods were stopped for the candidate and are
        gone."""
        leaving = self.situation.pods(self.old) > self.situation.children(self.old).wanted
        helped = self.stable is not None and not leaving and self.waited >= self.help_seconds
        return self.lasting_lack if helped else None

    @property
    def complete(self) -> bool:
        """All pods are ready."""
        children = self.situation.children(self.new)
        return children.wanted == self.situation.replicas <= children.ready

    @property
    def smoke_passed(self) -> bool:
        """Every pod that is ready has answered all smoke prompts as expected."""
        passed = {each.name for each in self.candidate.gates if each.state == "Passed"}
        return {gates.smoke_name(name) for name in self.situation.spec.smoke_maps} <= passed

    @property
    def evaluated(self) -> bool:
        """No evaluation is awaited or holds it up."""
        told = self.candidate.gates
        made = [gates.decided_before(each, told) for each in self.situation.spec.evaluations]
        over = all(each is not None and each.state != "Failed" for each in made)
        return over and not any(gates.is_evaluation(each) for each in self.undecided_before_traffic)

    @property
    def shadows(self) -> bool:
        """Whether the candidate is to be sent copies of requests: a stable revision makes them, and
        the candidate has no traffic yet."""
        able = self.takes_copies and self.stable is not None
        return able and self.state is State.READY and self.situation.spec.shadows

    @property
    def shadow_left(self) -> float:
        """Seconds for which it is sent copies at least; 0 when these hold nothing up."""
        spec = self.situation.spec.shadow
        if not self.shadows or self.candidate.shadowed_since is None or spec is None or self.skips:
            return 0.0
        return max(0.0, spec.hold_seconds - self.situation.since(self.candidate.shadowed_since))

    @property
    def shadow_done(self) -> bool:
        """Whether copies hold nothing up: none are needed, or they were sent for long enough and
        the gates that judge them let the candidate go on."""
        if not self.shadows or self.skips:
            return True
        if self.candidate.shadowed_since is None or self.shadow_left > 0:
            return False
        judged = [each for each in self.candidate.gates if gates.by_shadow(each)]
        return gates.no_objection(judged) and not self.shadow_undecided

    @property
    def shadow_undecided(self) -> tuple[GateVerdict, ...]:
        """The inconclusive gates that judge copies and hold the candidate up."""
        if not self.shadows or self.let_go:
            return ()
        return gates.undecided(self.candidate.gates, shadow=True)

    @property
    def undecided_before_traffic(self) -> tuple[GateVerdict, ...]:
        """Evaluations and load probes that are inconclusive and so keep the candidate from its first
        traffic.

        Empty where nobody else would answer the clients, or where a person or the specification
        lets the candidate go on.
        """
        if self.stable is None or self.needed:
            return ()
        return tuple(each for each in self._undecided if gates.without_traffic(each))

    @property
    def undecided_with_traffic(self) -> tuple[GateVerdict, ...]:
        """The inconclusive gates that hold it up while its traffic is judged."""
        # A load probe has decided before there was traffic, or was let pass.
        return tuple(each for each in self._undecided if each.name != gates.LOAD_PROBE)

    @property
    def undecided_evaluations(self) -> tuple[GateVerdict, ...]:
        """The inconclusive evaluations that hold it up once no traffic is judged any more."""
        return tuple(each for each in self._undecided if gates.is_evaluation(each))

    @property
    def _undecided(self) -> tuple[GateVerdict, ...]:
        return () if self.let_go else gates.undecided(self.candidate.gates)

    @property
    def unopposed(self) -> bool:
        """No gate has failed or is awaited."""
        return gates.no_objection(self.candidate.gates)

    @property
    def probed(self) -> bool:
        """No load probe is awaited or holds it up."""
        probes = [each for each in self.candidate.gates if each.name == gates.LOAD_PROBE]
        return all(
            each.state != "Waiting" and each not in self.undecided_before_traffic for each in probes
        )

    @property
    def proven(self) -> bool:
        """All that judges the candidate before its first traffic lets it go on: smoke prompts,
        evaluations, load probes and copies."""
        return self.smoke_passed and self.evaluated and self.probed and self.shadow_done

    @property
    def smoke_begun(self) -> bool:
        """For each of its smoke prompts' ConfigMaps a pod has passed, and none has failed."""
        begun = {
            each.name for each in self.candidate.gates if each.state != "Failed" and each.samples
        }
        return (
            self.smoke_passed
            or {gates.smoke_name(name) for name in self.situation.spec.smoke_maps} <= begun
        )

    @property
    def third(self) -> bool:
        """Another revision has pods that stay:
        a Service of two revisions would select them, too."""
        others = self.situation.revisions.keys() - {self.old, self.new}
        return any(self.situation.staying(revision) for revision in others)

    @property
    def enters(self) -> bool:
        """The candidate may be behind the Service together with the stable revision."""
        if self.state is State.STARTING:
            return False
        if self.state is State.READY and (self.candidate.paused or not self.proven):
            return False
        return not self.third

    @property
    def needed(self) -> bool:
        """Without the candidate no pod would answer its clients."""
        return not self.situation.answering(self.old) and self.situation.answering(self.new) > 0

    def changed(self, **change: Any) -> "Move":
        return replace(self, candidate=replace(self.candidate, **change))

    def with_hold(self, pods: int, hold_seconds: float, *, judged: bool) -> "Move":
        """The move with the hold begun or stopped. It runs while `pods` are ready and have what
        they are judged by."""
        runs = judged and self.situation.answering(self.new) >= pods and not self.candidate.paused
        return self._running("step_started_at", hold_seconds, runs=runs)

    def _running(self, hold: str, seconds: float, *, runs: bool) -> "Move":
        """The move with the beginning of a hold noted or removed. While the hold ran, the deadline
        stood still."""
        began = getattr(self.candidate, hold)
        if runs == (began is not None):
            return self
        if runs:
            return self.changed(**{hold: self.situation.moment})
        lasted = timedelta(seconds=int(min(seconds, self.situation.since(began))))
        progressed = self.candidate.progressed_at or self.candidate.started_at
        return self.changed(
            **{hold: None, "progressed_at": progressed + lasted if progressed else None}
        )

    def shadowed(self, pods: int) -> "Move":
        """The move with the moment noted since which the candidate is sent copies: when `pods` are
        ready and answer smoke prompts."""
        if self.state is State.TRAFFIC:
            return self
        ready = (
            self.situation.answering(self.new) >= pods
            and self.smoke_passed
            and not self.candidate.paused
        )
        spec = self.situation.spec.shadow
        return self._running(
            "shadowed_since", spec.hold_seconds if spec else 0.0, runs=self.shadows and ready
        )

    def further(self, **change: Any) -> Candidate:
        """The candidate a step further: its hold and its deadline begin anew."""
        begun = replace(
            self.candidate,
            progressed_at=self.situation.moment,
            step_started_at=None,
            undecided_since=None,
        )
        return replace(begun, **change)


@dataclass(frozen=True)
class Allocation:
    """Who has how many pods, and who has the traffic."""

    pods: dict[str, int]
    """By revision."""
    serving: tuple[str, ...]
    """The revisions that the Service selects."""
    candidate: Candidate | None = None
    """With its weight."""

    def noted(self, move: Move) -> "Allocation":
        """The allocation with the moment noted at which the candidate first gets traffic."""
        reached = move.new in self.serving or (self.candidate is not None and self.candidate.weight)
        if (
            self.candidate is None
            or move.stable is None
            or move.state is State.TRAFFIC
            or not reached
        ):
            return self
        restarts = move.situation.restarts(move.new)
        return replace(
            self,
            candidate=replace(
                self.candidate, traffic_since=move.situation.moment, restarts=restarts
            ),
        )
