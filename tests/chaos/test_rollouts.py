"""The operator is killed at random points of many roll-outs:
each ends where it should, and leaves nothing behind.

CHAOS_ROLLOUTS=200 runs so many (hack/bench chaos does), CHAOS_SEED repeats a run's choices.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from chaos.scenarios import KINDS, REPLICAS, SCENARIOS, SMOKE, Rollout, pods, prepare
from chaos.traffic import REVISION, Moment, moments
from control_plane.operator_fixtures import Api, Models, Operator, Place, PlayedKubelet
from control_plane.test_lifecycle import versions
from control_plane.watching import heard_to_the_end, recorded
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
AT_ONCE = 12
MANY_AT_ONCE = 40
"""In a run of more than a hundred: a round's time is mostly waiting."""
KILLS_EACH = (0.17, 0.25)
"""For each roll-out of a round, at least and at most; each hits all that are under way."""
CONVERGE_SECONDS = 240.0
"""On a machine that has nothing else to do it takes a tenth of that."""
CHILDREN = (
    "Deployment",
    "ConfigMap",
    "Service",
    "ServiceAccount",
    "Secret",
    "PodDisruptionBudget",
    "Pod",
)


def test_every_rollout_ends_as_it_should_whoever_dies_on_the_way(
    api: Api, operator: Operator, kubelet: PlayedKubelet, models: Models
) -> None:
    wanted = int(os.environ.get("CHAOS_ROLLOUTS", "12"))
    seed = int(os.environ.get("CHAOS_SEED") or time.time())
    print(f"CHAOS_SEED={seed}")
    chance = random.Random(seed)
    seconds = list[float]()
    kills = 0
    wrong = list[str]()
    kinds = chance.sample(KINDS, len(KINDS))
    at_once = AT_ONCE if wanted <= 100 else MANY_AT_ONCE
    with pods() as served:
        for first in range(0, wanted, at_once):
            chosen = [
                kinds[number % len(kinds)] for number in range(first, min(first + at_once, wanted))
            ]
            place = Place(api, f"chaos{time.time_ns() % 10**10}", kubelet, models)
            api.call("POST", "/api/v1/namespaces", {"metadata": {"name": place.name}})
            prepare(place, served)
            rollouts = [
                Rollout(place, f"r{n}", strategy, SCENARIOS[name])
                for n, (strategy, name) in enumerate(chosen)
            ]
            took, died = _play(rollouts, operator, chance, wrong)
            seconds = seconds + took
            kills = kills + died
            print(
                f"{first + len(rollouts)} roll-outs, {kills} kills, this round at most"
                f" {max(took):.1f} s",
                flush=True,
            )
    assert not wrong
    seconds.sort()
    print(
        f"converged: median {seconds[len(seconds) // 2]:.1f} s, all of {len(seconds)} within"
        f" {seconds[-1]:.1f} s"
    )


def _play(
    rollouts: list[Rollout], operator: Operator, chance: random.Random, wrong: list[str]
) -> tuple[list[float], int]:
    """One round; returns how long each took to converge, and how often the operator was killed.
    Adds to `wrong`."""
    place = rollouts[0].place
    with (
        recorded(place.api, "Service", place.name) as services,
        recorded(place.api, "Pod", place.name) as pods,
    ):
        for rollout in rollouts:
            rollout.begin()
        for rollout in rollouts:
            place.ready(rollout.name, seconds=CONVERGE_SECONDS)
        kills = round(chance.uniform(*KILLS_EACH) * len(rollouts))
        points = [chance.uniform(0, 6.0) for _ in range(kills)]
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as people:
            done = [
                people.submit(rollout.scenario.happens, rollout)
                for rollout in chance.sample(rollouts, len(rollouts))
            ]
            for point in points:
                time.sleep(point)
                operator.stop(signal.SIGKILL)
                operator.start()
            for each in done:
                each.result()
        took = _converge(rollouts, began)
        eventually(lambda: _quiet(place))
        heard_to_the_end(place, "Service", services)
        heard_to_the_end(place, "Pod", pods)
        for rollout in rollouts:
            try:
                _whole(rollout, moments(rollout.name, services, pods))
            except AssertionError as error:
                wrong.append(str(error))
                print(f"WRONG: {error}", flush=True)
    for rollout in rollouts:
        place.api.delete("LLMDeployment", place.name, rollout.name)
    eventually(lambda: _nothing_left(place), CONVERGE_SECONDS)
    return took, len(points)


def _converge(rollouts: list[Rollout], began: float) -> list[float]:
    """Seconds until each is as it should be."""
    open_ = list(rollouts)
    took = list[float]()

    def over() -> bool:
        time.sleep(1.0)  # The machine is for those under test.
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
        raise AssertionError(
            f"{[_named(each) for each in open_]} did not end as they should: {status}"
        ) from error
    return took


def _whole(rollout: Rollout, life: list[Moment]) -> None:
    """No child without an owner or of a forgotten revision,
    and all the time the right pods behind the Service."""
    place = rollout.place
    resource = rollout.over()
    assert resource is not None
    status = resource["status"]
    known = {
        each["revision"]
        for each in (status["stable"], status.get("candidate"), *status.get("history", []))
        if each
    }
    labels = f"llm-operator.dev/deployment={rollout.name}"
    for kind in CHILDREN:
        for child in place.api.list(kind, place.name, labels):
            meta = child["metadata"]
            assert meta.get("ownerReferences"), (
                f"{_named(rollout)}: {kind} {meta['name']} has no owner"
            )
            assert meta["labels"].get(REVISION, status["stable"]["revision"]) in known, (
                f"{kind} {meta['name']}"
            )
    running = Counter(
        pod["metadata"]["labels"][REVISION] for pod in place.api.list("Pod", place.name, labels)
    )
    assert running == {status["stable"]["revision"]: rollout.spec["replicas"]}, _named(rollout)
    _served(rollout, life)
    assert life[-1] == Moment(status["stable"]["revision"], running), _named(rollout)


def _served(rollout: Rollout, life: list[Moment]) -> None:
    """No turn of the Service too many, never a third revision behind it,
    never less ready pods than before."""
    who = _named(rollout)
    turns = [
        revision for revision, _ in itertools.groupby(each.alone for each in life if each.alone)
    ]
    assert len(turns) - 1 in rollout.turns, f"{who}: the Service turned {' → '.join(turns)}"
    shared = [each.ready for each in life if each.alone is None]
    assert not shared or rollout.shares, f"{who}: shared the Service"
    assert all(len(ready) <= 2 for ready in shared), f"{who}: {shared}"
    if rollout.strategy == "Canary":
        assert all(2 * (ready.total() - ready[turns[0]]) <= ready.total() for ready in shared), (
            f"{who}: {shared}"
        )
    if rollout.strategy != "Recreate":
        serving = itertools.dropwhile(lambda each: each.ready.total() < REPLICAS, life)
        # A Rolling that clients' answers condemn leaves at once,
        # and the old pods that made room for it come back.
        least = 1 if rollout.strategy == "Rolling" and rollout.scenario.by_traffic else REPLICAS
        assert all(each.ready.total() >= least for each in serving), f"{who}: {life}"


def _named(rollout: Rollout) -> str:
    name = next(name for name, scenario in SCENARIOS.items() if scenario is rollout.scenario)
    return f"{rollout.strategy}, {name} ({rollout.place.name}/{rollout.name})"


def _quiet(place: Place) -> bool:
    before = versions(place)
    time.sleep(1.5)
    return versions(place) == before


def _nothing_left(place: Place) -> bool:
    left = [c["metadata"]["name"] for kind in CHILDREN for c in place.api.list(kind, place.name)]
    return set(left) <= {"default", "kube-root-ca.crt", "llm-operator-installation", SMOKE}
