"""The operator is killed at random points of many roll-outs: each ends where it should, and leaves nothing behind.

CHAOS_ROLLOUTS=200 runs so many (hack/bench chaos does), CHAOS_SEED repeats a run's choices.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress

import pytest

from chaos.scenarios import SCENARIOS, STRATEGIES, Rollout, prepare
from control_plane.operator_fixtures import Api, Json, Models, Operator, Place, PlayedKubelet, eventually
from control_plane.test_lifecycle import versions
from control_plane.watching import recorded

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
REVISION = "llm-operator.dev/revision"
AT_ONCE = 12
CONVERGE_SECONDS = 90.0
CHILDREN = ("Deployment", "ConfigMap", "Service", "ServiceAccount", "Secret", "PodDisruptionBudget", "Pod")


def test_every_rollout_ends_as_it_should_whoever_dies_on_the_way(
    api: Api, operator: Operator, kubelet: PlayedKubelet, models: Models
) -> None:
    wanted, seed = int(os.environ.get("CHAOS_ROLLOUTS", "12")), int(os.environ.get("CHAOS_SEED") or time.time())
    print(f"CHAOS_SEED={seed}")
    chance, seconds, kills = random.Random(seed), list[float](), 0
    kinds = list(itertools.product(STRATEGIES, SCENARIOS))
    for first in range(0, wanted, AT_ONCE):
        chosen = [kinds[number % len(kinds)] for number in range(first, min(first + AT_ONCE, wanted))]
        place = Place(api, f"chaos{time.time_ns() % 10**10}", kubelet, models)
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": place.name}})
        prepare(place)
        rollouts = [Rollout(place, f"r{n}", strategy, SCENARIOS[name]) for n, (strategy, name) in enumerate(chosen)]
        took, died = _play(rollouts, operator, chance)
        seconds, kills = seconds + took, kills + died
        print(f"{first + len(rollouts)} roll-outs, {kills} kills, this round at most {max(took):.1f} s", flush=True)
    seconds.sort()
    print(f"converged: median {seconds[len(seconds) // 2]:.1f} s, all of {len(seconds)} within {seconds[-1]:.1f} s")


def _play(rollouts: list[Rollout], operator: Operator, chance: random.Random) -> tuple[list[float], int]:
    """One round; returns how long each took to converge, and how often the operator was killed."""
    place = rollouts[0].place
    with recorded(place.api, "Service", place.name) as services:
        for rollout in rollouts:
            rollout.begin()
        for rollout in rollouts:
            place.ready(rollout.name, seconds=CONVERGE_SECONDS)
        order, deaths = chance.sample(rollouts, len(rollouts)), chance.randint(1, 2)
        points = sorted(chance.uniform(0, 3.0) for _ in range(deaths))
        began = time.monotonic()
        for rollout in order:
            rollout.scenario.happens(rollout)
        for number, point in enumerate(points):
            time.sleep(max(0.0, point - (time.monotonic() - began)) if number == 0 else point)
            operator.stop(signal.SIGKILL)
            operator.start()
        took = _converge(rollouts, began)
        eventually(lambda: _quiet(place), 30)
        for rollout in rollouts:
            _whole(rollout, services)
    for rollout in rollouts:
        place.api.delete("LLMDeployment", place.name, rollout.name)
    eventually(lambda: _nothing_left(place), CONVERGE_SECONDS)
    return took, deaths


def _converge(rollouts: list[Rollout], began: float) -> list[float]:
    """Seconds until each is as it should be."""
    open_, took = list(rollouts), list[float]()

    def over() -> bool:
        for rollout in list(open_):
            with suppress(AssertionError, KeyError):
                rollout.over()
                open_.remove(rollout)
                took.append(time.monotonic() - began)
        return not open_

    try:
        eventually(over, CONVERGE_SECONDS)
    except AssertionError as error:
        status = rollouts[0].place.status(open_[0].name)
        raise AssertionError(f"{[_named(each) for each in open_]} did not end as they should: {status}") from error
    return took


def _whole(rollout: Rollout, services: list[Json]) -> None:
    """No child without an owner or of a forgotten revision, and no turn of the Service too many."""
    place, resource = rollout.place, rollout.over()
    assert resource is not None
    status = resource["status"]
    known = {
        each["revision"] for each in (status["stable"], status.get("candidate"), *status.get("history", [])) if each
    }
    labels = f"llm-operator.dev/deployment={rollout.name}"
    for kind in CHILDREN:
        for child in place.api.list(kind, place.name, labels):
            meta = child["metadata"]
            assert meta.get("ownerReferences"), f"{_named(rollout)}: {kind} {meta['name']} has no owner"
            assert meta["labels"].get(REVISION, status["stable"]["revision"]) in known, f"{kind} {meta['name']}"
    running = Counter(pod["metadata"]["labels"][REVISION] for pod in place.api.list("Pod", place.name, labels))
    assert running == {status["stable"]["revision"]: rollout.spec["replicas"]}, _named(rollout)
    told = [s["spec"]["selector"][REVISION] for s in services if s["metadata"]["name"] == rollout.name]
    turns = [revision for revision, _ in itertools.groupby(told)]
    assert len(turns) - 1 in rollout.turns, f"{_named(rollout)}: the Service turned {' → '.join(turns)}"
    assert turns[-1] == status["stable"]["revision"], _named(rollout)


def _named(rollout: Rollout) -> str:
    name = next(name for name, scenario in SCENARIOS.items() if scenario is rollout.scenario)
    return f"{rollout.strategy}, {name} ({rollout.place.name}/{rollout.name})"


def _quiet(place: Place) -> bool:
    before = versions(place)
    time.sleep(1.5)
    return versions(place) == before


def _nothing_left(place: Place) -> bool:
    left = [c["metadata"]["name"] for kind in CHILDREN for c in place.api.list(kind, place.name)]
    return set(left) <= {"default", "kube-root-ca.crt"}
