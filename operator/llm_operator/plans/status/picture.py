"""What all conditions of an LLMDeployment are read from."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from llm_operator.plans.rollout import Decision
from llm_operator.plans.status import downloads
from llm_operator.plans.status.adapter_status import AdapterReport
from llm_operator.plans.status.faults import Mishaps
from llm_operator.state import Fault, Manifest, Observed, RevisionChildren


@dataclass(frozen=True)
class Picture:
    """What was observed and decided, in one look."""

    observed: Observed
    decision: Decision
    replicas: int
    """Pods wanted now."""
    now: datetime
    adapters: AdapterReport
    mishaps: Mishaps
    """What has happened to the pods."""
    applied: Fault | None = None
    """What went wrong with the children."""

    @property
    def serving(self) -> list[RevisionChildren]:
        """What there is of the revisions behind the Service."""
        return self._children(self.decision.serving)

    @property
    def serving_pods(self) -> list[Manifest]:
        return [pod for each in self.serving for pod in each.pods]

    def _children(self, names: Iterable[str]) -> list[RevisionChildren]:
        return [self.observed.revisions[name] for name in names if name in self.observed.revisions]

    @property
    def ready(self) -> int:
        """Ready pods behind the Service.
        During a roll-out pods are ordered all the time: then as last counted."""
        shared = len(self.decision.serving) > 1
        return sum(each.answering if shared else each.ready for each in self.serving)

    @property
    def download(self) -> str:
        """How far the pods that are to come have got with the model's files;
        empty: they download nothing."""
        candidate = self.decision.candidate if self.decision.rolling_out else None
        coming = (candidate.revision,) if candidate else self.decision.serving
        pods = [pod for each in self._children(coming) for pod in each.pods]
        return downloads.progress(pods, self.observed.figures, self.replicas)

    @property
    def serving_fault(self) -> Fault | None:
        found = (self.observed.faults.get(name) for name in self.decision.serving)
        return next((fault for fault in found if fault is not None), None)

    @property
    def stalls_in(self) -> timedelta | None:
        """Time left before a fault of pods that should serve is reported as Stalled; None without
        one.

        It has as long as a roll-out may take, from when the first of these pods was last ready.
        """
        if self.decision.rolling_out or self.ready >= self.replicas or self.serving_fault is None:
            return None
        hindered = self.mishaps.hindered
        pods = [pod["metadata"]["name"] for pod in self.serving_pods]
        since = min((hindered[name] for name in pods if name in hindered), default=None)
        if since is None:
            return None
        seconds = self.observed.spec.rollout.progress_deadline_seconds
        return since + timedelta(seconds=seconds) - self.now
