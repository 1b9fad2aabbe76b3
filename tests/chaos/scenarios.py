"""What may happen to an LLMDeployment, and how each of these ends, whoever dies on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from control_plane.operator_fixtures import Json, Place
from control_plane.pod_metrics import ServingPod, loopback, pod_metrics
from control_plane.test_rollout import fatal
from waiting import eventually

STRATEGIES: dict[str, Json] = {
    "BlueGreen": {"blueGreen": {"holdSeconds": 1}},
    "Recreate": {},
    "Rolling": {},
    "Canary": {
        "canary": {"steps": [{"weight": 34, "holdSeconds": 1}, {"weight": 50, "holdSeconds": 1}]}
    },
}
"""What spec.rollout says beside the strategy's name.
Beside two stable pods one candidate is a third, two are half."""
REPLICAS = 2
GOOD = 2
CORRUPT = 3
STUCK = 4
"""Versions beside the first; what becomes of their pods is in `prepare`."""
FAULTY = 5
WRONG = 6
VERSIONS = 6
SMOKE = "smoke"
GATES: list[Json] = [
    {"smokePrompts": {"configMap": SMOKE}},
    {"maxErrorRate": 0.05, "minRequests": 20},
]


@contextmanager
def pods() -> Iterator[dict[int, ServingPod]]:
    """What the pods of each version that get ready say, for as long as the context lasts."""
    with ExitStack() as stack:
        good = ServingPod(loopback())
        served = {1: good, GOOD: good, FAULTY: ServingPod(loopback(), error_rate=0.4)}
        served[WRONG] = ServingPod(loopback(), said="wrong")
        for each in set(served.values()):
            stack.enter_context(pod_metrics(each))
        yield served


def prepare(place: Place, served: dict[int, ServingPod]) -> None:
    """One model, in which each roll-out has an alias of its own;
    and what becomes of which version's pods."""
    place.model(VERSIONS, alias=None)
    expected = {"prompt": "Say it.", "expect": {"exact": served[GOOD].said}}
    smoke = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SMOKE, "namespace": place.name},
    }
    place.api.apply({**smoke, "data": {"one": json.dumps(expected)}})
    for version, pod in served.items():
        place.kubelet.fate[place.name, str(version)] = pod.ready
    place.kubelet.fate[place.name, str(CORRUPT)] = fatal()
    place.kubelet.fate[place.name, str(STUCK)] = {}


@dataclass
class Rollout:
    """One LLMDeployment to which something happens."""

    place: Place
    name: str
    strategy: str
    scenario: Scenario
    spec: dict[str, Any] = field(default_factory=lambda: {"replicas": REPLICAS})

    def begin(self) -> None:
        self.promote(1)
        self.change()

    def change(self, **spec: Any) -> None:
        self.spec |= spec
        rollout = {
            "strategy": self.strategy,
            "drainSeconds": 1,
            "gates": GATES,
            **STRATEGIES[self.strategy],
        }
        self.place.deploy(self.name, mlflow=self._followed(), rollout=rollout, **self.spec)

    def annotate(self, **notes: str) -> None:
        named = {f"llm-operator.dev/{name}": value for name, value in notes.items()}
        self.place.api.patch(
            "LLMDeployment", self.place.name, self.name, {"metadata": {"annotations": named}}
        )

    def promote(self, version: int) -> None:
        self.place.models.promote(self._followed()["name"], version, self.name)

    def _followed(self) -> dict[str, str]:
        return {"name": f"{self.place.name}-model", "alias": self.name}

    def over(self) -> Json | None:
        """The resource, once it is as it should be in the end."""
        resource = self.place.get("LLMDeployment", self.name) or {}
        status = resource["status"]
        wanted = self.scenario
        conditions = {c["type"]: c for c in status["conditions"]}
        assert status["observedGeneration"] == resource["metadata"]["generation"]
        assert status["stable"]["version"] == wanted.version, status["stable"]
        assert conditions["Available"]["status"] == "True", conditions["Available"]
        assert status["readyReplicas"] == self.spec["replicas"]
        if wanted.failed:
            assert status["candidate"]["outcome"] == "Failed", status["candidate"]
            assert conditions["Stalled"]["status"] == "True"
        else:
            assert "candidate" not in status, status["candidate"]
            assert conditions["Ready"]["status"] == "True", conditions["Ready"]
        return resource

    @property
    def shares(self) -> bool:
        """Whether the Service may select two revisions for a while."""
        return self.strategy in ("Rolling", "Canary") and not (
            self.scenario.failed and not self.scenario.by_traffic
        )

    @property
    def turns(self) -> set[int]:
        """How often the Service may turn from one revision alone to another alone:
        once, to what has proved itself.

        Recreate turns as soon as the old pods are gone, and back.
        """
        if self.strategy == "Recreate" and self.scenario.detour:
            return {1, 2}
        if self.scenario.by_traffic:
            return {2} if self.strategy == "BlueGreen" else {0}
        if self.scenario.failed:
            return {0, 2} if self.strategy == "Recreate" else {0}
        return {1}


@dataclass(frozen=True)
class Scenario:
    """What happens, and the version that serves in the end."""

    happens: Callable[[Rollout], None]
    version: str
    failed: bool = False
    detour: bool = False
    """Another version may have been tried before."""
    by_traffic: bool = False
    """It fails once clients ask it. Recreate has no traffic to compare with, and goes on."""


def _replaced(rollout: Rollout) -> None:
    rollout.promote(STUCK)
    rollout.promote(GOOD)


def _grown(rollout: Rollout) -> None:
    rollout.promote(GOOD)
    rollout.change(replicas=3)


def _aborted(rollout: Rollout) -> None:
    rollout.promote(STUCK)
    candidate = eventually(lambda: rollout.place.status(rollout.name)["candidate"]["revision"], 180)
    rollout.annotate(rollout=f"abort:{candidate}")


SCENARIOS = {
    "a promotion": Scenario(lambda rollout: rollout.promote(GOOD), "2"),
    "a corrupt version": Scenario(lambda rollout: rollout.promote(CORRUPT), "1", failed=True),
    "a version that answers wrong": Scenario(
        lambda rollout: rollout.promote(WRONG), "1", failed=True
    ),
    "a version with errors": Scenario(
        lambda rollout: rollout.promote(FAULTY), "1", failed=True, by_traffic=True
    ),
    "a changed specification": Scenario(
        lambda rollout: rollout.change(engine={"maxModelLength": 1024}), "1"
    ),
    "a promotion after one that hangs": Scenario(_replaced, "2", detour=True),
    "a promotion and more pods": Scenario(_grown, "2"),
    "a promotion that is aborted": Scenario(_aborted, "1", failed=True),
}
KINDS = [
    (strategy, name)
    for strategy, (name, scenario) in itertools.product(STRATEGIES, SCENARIOS.items())
    if not (strategy == "Recreate" and scenario.by_traffic)
]
