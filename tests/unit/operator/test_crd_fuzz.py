"""The CRDs accept nothing that the code can't carry:
wild specifications, thrown at the models and the planner."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from crd_fuzz import schema, specification
from llm_operator import plans
from llm_operator.crds.server import FilterPatternSpec
from llm_operator.reconcile import Pace, Retry, reconcile
from llm_operator.settings import Choice, ConnectionSettings, PodPolicy
from llm_operator.state import Key, Observed, Plan
from unit.operator.fakes import NAMESPACE, FakeRegistry, World

SEEDS = range(100)
OWN_FAULTS = ("InvalidSpec", "NotObserved", "NotPermitted")
ANY = PodPolicy(
    annotations=Choice(),
    labels=Choice(),
    tolerations=Choice(),
    priority_classes=Choice(),
    anti_affinity_namespaces=Choice(),
)
"""A platform that keeps nothing to itself: what it refuses by default is in test_policy.py."""
PLAN_SECONDS = 0.05


def unbounded(found: dict[str, Any], path: str) -> list[str]:
    """Fields without a bound."""
    wrong = []
    kind = found.get("type")
    if (
        kind == "string"
        and not {"maxLength", "enum"} & found.keys()
        and "{1,9}" not in found.get("pattern", "")
    ):
        wrong.append(path)
    if found.get("x-kubernetes-int-or-string") and not {"maxLength", "pattern"} <= found.keys():
        wrong.append(path)
    if kind in ("integer", "number") and not {"minimum", "maximum"} <= found.keys():
        wrong.append(path)
    if kind == "array" and "maxItems" not in found:
        wrong.append(path)
    if isinstance(found.get("additionalProperties"), dict):
        wrong += [path] if "maxProperties" not in found else []
        wrong += unbounded(found["additionalProperties"], f"{path}.*")
    for name, field in (found.get("properties") or {}).items():
        wrong += unbounded(field, f"{path}.{name}")
    return wrong + (unbounded(found["items"], f"{path}[]") if "items" in found else [])


@pytest.mark.parametrize("kind", ["LLMDeployment", "ApiKey"])
def test_every_field_of_a_specification_is_bounded(kind: str) -> None:
    assert unbounded(schema(kind)["properties"]["spec"], "spec") == []


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long plans took that took too long, each in its fastest of three:
    seconds of this process alone."""
    found = list[float]()
    whole = plans.deployment

    def timed(observed: Observed, *, settle_seconds: float, now: datetime) -> Plan:
        times = []
        for _ in range(3):
            began = time.process_time()
            plan = whole(observed, settle_seconds=settle_seconds, now=now)
            times.append(time.process_time() - began)
            if times[-1] < PLAN_SECONDS:
                return plan
        found.append(min(times))
        return plan

    monkeypatch.setattr(plans, "deployment", timed)
    return found


@pytest.mark.parametrize("block", range(10))
async def test_wild_deployments_are_carried_through_a_promotion(
    block: int, slow: list[float]
) -> None:
    for seed in SEEDS[block::10]:
        spec = specification("LLMDeployment", seed)
        # That Python can't compile a pattern is told in a condition.
        for pattern in spec.get("server", {}).get("filters", {}).get("patterns", ()):
            pattern["regex"] = "T-[0-9]+"
        try:
            await promoted(spec)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {json.dumps(spec)[:4000]}") from error
        assert slow == [], f"seed {seed}: {json.dumps(spec)[:4000]}"


async def promoted(spec: dict[str, Any]) -> None:
    world = World()
    world.registry = Everything()
    world.cluster.kinds = dict.fromkeys(world.cluster.kinds, True)
    for connection in connections(spec):
        world.connections.known[connection] = ConnectionSettings(tracking_uri="http://mlflow:5000")
    world.outside = replace(world.restarted("example.com/runtime:1"), policy=ANY)
    if store := spec["model"].get("credentialsSecretRef"):
        meta = {"name": store["name"], "namespace": NAMESPACE}
        await world.cluster.create(
            {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {}}
        )
    await world.put("LLMDeployment", "bot", spec)
    for _ in range(2):
        for _ in range(3):
            await look(world)
            for name in world.cluster.named("Deployment"):
                world.cluster.play(name)
            world.clock.pass_seconds(100)
        world.registry.version = "2"
    assert world.status()["observedGeneration"] == 1
    assert not {each["reason"] for each in world.status()["conditions"]} & set(OWN_FAULTS), (
        world.status()
    )


class Everything(FakeRegistry):
    """Has every model, in one version."""

    version = "1"

    async def resolve(self, connection: Any, reference: Any) -> Any:
        self.aliases = {reference.name: {reference.alias or "": self.version}}
        return await super().resolve(connection, reference)


def connections(spec: dict[str, Any]) -> set[str]:
    asked = [
        spec["model"].get("mlflow") or {},
        *(each["mlflow"] for each in spec.get("adapters") or ()),
    ]
    return {each.get("connection", "default") for each in asked}


async def look(world: World, kind: str = "LLMDeployment", name: str = "bot") -> None:
    try:
        await reconcile(Key(kind, NAMESPACE, name), world.outside, Pace(60, 5))
    except Retry as error:
        raise AssertionError(str(error)) from error


async def test_wild_apikeys_are_carried() -> None:
    world = World()
    await world.deploy()
    await look(world)
    for seed in SEEDS[:50]:
        spec = specification("ApiKey", seed)
        await world.put("ApiKey", "wild", spec)
        await look(world, "ApiKey", "wild")
        await look(world, "KeyFile")
        await look(world, "ApiKey", "wild")
        reason = world.condition("Ready", "wild", "ApiKey")["reason"]
        assert reason not in ("InvalidSpec", "NotObserved", "Delivering"), f"seed {seed}: {spec}"


@pytest.mark.parametrize(
    "regex", ["a{99999999999}", "(" * 400 + ")" * 400, "(?=a)", "x*", "[", "(?P<a>"]
)
def test_a_pattern_that_no_pod_could_use_is_refused_and_costs_nothing(regex: str) -> None:
    with pytest.raises(
        ValidationError, match=r"is not a regular expression of Python|matches the empty text"
    ):
        FilterPatternSpec(name="A", regex=regex)


def test_a_pattern_that_takes_pythons_own_engine_long_costs_nothing() -> None:
    """Compiled by `re`, 32 of these take 20 s in which no other object is looked at."""
    began = time.process_time()
    for number in range(32):
        regex = f"(?i)a{number}" + "[\\x00-\\U0010ffff]" * 40
        with suppress(ValidationError):  # RE2 may find it too large.
            FilterPatternSpec(name="A", regex=regex)
    assert time.process_time() - began < 2
