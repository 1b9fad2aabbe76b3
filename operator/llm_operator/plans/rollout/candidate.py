"""The candidate: the revision on its way, as roll-outs reckon with it."""

from dataclasses import dataclass
from datetime import datetime

from llm_operator.crds import CandidateStatus, GateVerdict, LLMDeploymentStatus, StableStatus
from llm_operator.plans.evidence import gates
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout.situation import parse, stamp

_MOMENTS = (
    "started_at",
    "shadowed_since",
    "step_started_at",
    "undecided_since",
    "traffic_since",
    "progressed_at",
)


@dataclass(frozen=True)
class Candidate:
    """The revision on its way.
    CandidateStatus is its form in the API, and says what each field is."""

    revision: str
    version: str
    image: str | None = None
    started_at: datetime | None = None
    strategy: str | None = None
    strategy_reason: str | None = None
    surge: int | None = None
    replicas: int | None = None
    step: int | None = None
    weight: int | None = None
    shadowed_since: datetime | None = None
    step_started_at: datetime | None = None
    undecided_since: datetime | None = None
    traffic_since: datetime | None = None
    restarts: int | None = None
    progressed_at: datetime | None = None
    paused: bool = False
    gates: tuple[GateVerdict, ...] = ()
    outcome: str | None = None
    reason: str | None = None
    message: str | None = None

    @classmethod
    def read(cls, status: CandidateStatus) -> "Candidate":
        moments = {name: parse(getattr(status, name)) for name in _MOMENTS}
        return cls(
            **{
                **dict(status),
                **moments,
                "paused": bool(status.paused),
                "gates": status.gates or (),
            }
        )

    def served(self, since: datetime | None) -> StableStatus:
        """The candidate as the revision that serves."""
        return StableStatus(
            revision=self.revision,
            version=self.version,
            image=self.image,
            started_at=stamp(since) if since else None,
            judged=gates.summary(self.gates) or None,
            loads=tuple(each.load for each in self.gates if each.load) or None,
        )

    def status(self) -> CandidateStatus:
        """The candidate as the API has it: an absent field stands for the usual case."""
        moments = {name: stamp(at) for name in _MOMENTS if (at := getattr(self, name)) is not None}
        return CandidateStatus(
            **{**vars(self), **moments, "paused": self.paused or None, "gates": self.gates or None}
        )


def tries_on(status: LLMDeploymentStatus) -> bool:
    """Whether its candidate has failed and goes on:
    nothing else serves, and it gave no wrong answer."""
    candidate = status.candidate
    if candidate is None or candidate.outcome is None or status.stable is not None:
        return False
    return candidate.reason not in (Reason.GateFailed, Reason.Aborted)
