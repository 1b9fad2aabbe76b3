"""What pods say of their load. A sample is used for a few seconds, so that several metrics of one
pod are one request to it."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from llm_operator.plans.names import DEPLOYMENT_LABEL, MANAGED_SELECTOR, managed
from llm_operator.ports.cluster import Cluster
from llm_operator.ports.pods import Pods
from llm_operator.state import Figures, Load, Manifest, pod_ready

FRESH_SECONDS = 5.0
"""No answer has a figure for which the pod was asked earlier than this. An autoscaler asks each
15 s."""
_EQUALS = re.compile(r"([^=!(),\s]+)==?([^=!(),\s]+)")


@dataclass(frozen=True)
class Sample:
    """The load of one ready pod."""

    pod: Manifest
    load: Load | None
    """None: the pod did not answer, or serves no model."""
    taken: datetime
    """When the pod was asked: the figures are from then or a moment later."""


@dataclass(frozen=True)
class _Question:
    began: float
    """By the monotonic clock."""
    at: datetime
    answer: "asyncio.Task[Figures | None]"


class Samples:
    """Asks the ready pods of LLMDeployments. `cluster` says what pods there are."""

    def __init__(
        self,
        cluster: Cluster,
        pods: Pods,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cluster = cluster
        self._pods = pods
        self._clock = clock
        self._now = now
        self._questions: dict[str, _Question] = {}
        """By the pod's uid, the latest at the end."""

    async def of(self, namespace: str, selector: str) -> list[Sample]:
        """Samples of the ready pods that the label selector chooses. Raises ApiError, also for a
        selector that is none."""
        pods = await self._ready(namespace, selector)
        return list(await asyncio.gather(*map(self._sample, pods)))

    async def named(self, namespace: str, name: str) -> Sample | None:
        """The sample of one pod; None where there is no ready one of that name."""
        pods = await self._ready(namespace, "", f"metadata.name={name}")
        return await self._sample(pods[0]) if pods else None

    async def _ready(self, namespace: str, selector: str, fields: str = "") -> list[Manifest]:
        wanted = _equalities(selector)
        if DEPLOYMENT_LABEL in wanted:
            # As status.selector of an LLMDeployment is: the leader knows these pods by its watch.
            label = f"{DEPLOYMENT_LABEL}={wanted[DEPLOYMENT_LABEL]}"
            found = await self.cluster.list("Pod", namespace, label)
        else:
            labels = ",".join(filter(None, (MANAGED_SELECTOR, selector)))
            found = await self.cluster.list("Pod", namespace, labels, fields)
        return [
            pod
            for pod in found
            if managed(pod)
            # Pods of evaluations are managed, too, and are no LLMDeployment's.
            and DEPLOYMENT_LABEL in pod["metadata"]["labels"]
            and pod_ready(pod)
            and wanted.items() <= (pod["metadata"].get("labels") or {}).items()
        ]

    async def _sample(self, pod: Manifest) -> Sample:
        uid = pod["metadata"]["uid"]
        while self._questions and self._over(next(iter(self._questions.values()))):
            del self._questions[next(iter(self._questions))]
        question = self._questions.get(uid)
        if question is None or self._over(question):
            self._questions.pop(uid, None)
            asking = asyncio.ensure_future(self._pods.figures(pod))
            question = self._questions[uid] = _Question(self._clock(), self._now(), asking)
        # Others may wait for the same answer when one of them has gone.
        figures = await asyncio.shield(question.answer)
        return Sample(pod, figures.load if figures else None, question.at)

    def _over(self, question: _Question) -> bool:
        """Whether its answer is no longer fresh.

        A pod that still owes an answer is not asked again: else questions to pods that do not
        answer would come faster than they end.
        """
        return question.answer.done() and question.began < self._clock() - FRESH_SECONDS


def _equalities(selector: str) -> dict[str, str]:
    """The labels and their values, where the selector asks for nothing but equality; else empty."""
    pairs = [_EQUALS.fullmatch(part.strip()) for part in selector.split(",")]
    return {pair[1]: pair[2] for pair in pairs if pair} if all(pairs) else {}
