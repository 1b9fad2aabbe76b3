"""What the API server tells to whoever watches:
every state of a kind, not only those that a test happens to see."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from control_plane.operator_fixtures import Api, Json, Place
from llm_operator.ports.cluster import path_of
from llm_operator.state import pod_ready
from waiting import eventually


@contextmanager
def recorded(api: Api, kind: str, namespace: str) -> Iterator[list[Json]]:
    """Every state of the namespace's objects of one kind, from now on, in order."""
    found: list[Json] = []
    stop = threading.Event()

    def follow() -> None:
        query = {"watch": "1"}
        patience = httpx.Timeout(20, read=300)
        try:
            with api.client.stream(
                "GET", path_of(kind, namespace), params=query, timeout=patience
            ) as answer:
                for line in answer.iter_lines():
                    if stop.is_set():
                        return
                    found.append(json.loads(line)["object"])
        except httpx.HTTPError:
            return

    threading.Thread(target=follow, daemon=True).start()
    yield found
    stop.set()


@contextmanager
def never_less_than(place: Place, least: int) -> Iterator[None]:
    """Whatever happens in here, so many ready pods are behind the Service `bot` all the time."""
    with (
        recorded(place.api, "Pod", place.name) as pods,
        recorded(place.api, "Service", place.name) as services,
    ):
        eventually(lambda: pods and services)
        began = moment(place.api, place.name)
        yield
        # Each stream lags as it likes: a pod that is ready but not heard of would be counted as
        # missing.
        ended = heard_to_the_end(place, "Service", services)
        heard_to_the_end(place, "Pod", pods)
    assert min(behind(services, pods, began, ended)) >= least


def heard_to_the_end(place: Place, kind: str, found: list[Json]) -> int:
    """Wait until a recording has all that happened up to now;
    returns the resource version of now."""
    note = {"metadata": {"annotations": {"test": str(time.time_ns())}}}

    def mark() -> Json:
        staying = next(
            e for e in place.api.list(kind, place.name) if "deletionTimestamp" not in e["metadata"]
        )
        return place.api.patch(kind, place.name, staying["metadata"]["name"], note)

    version = eventually(mark)["metadata"]["resourceVersion"]
    eventually(lambda: any(each["metadata"]["resourceVersion"] == version for each in found))
    return int(version)


def behind(
    services: list[Json], pods: list[Json], since: int, until: int, service: str = "bot"
) -> list[int]:
    """Ready pods that the Service selects,
    after every change of either between two resource versions.

    Two requests see two moments;
    resource versions put the states of both kinds into the one order in which they were.
    """
    selector: Json = {}
    known: dict[str, Json] = {}
    counted: list[int] = []
    for state in sorted(
        (*services, *pods), key=lambda each: int(each["metadata"]["resourceVersion"])
    ):
        if state["kind"] == "Pod":
            known[state["metadata"]["uid"]] = state
        elif state["metadata"]["name"] == service:
            selector = state["spec"]["selector"]
        if since < int(state["metadata"]["resourceVersion"]) <= until:
            counted.append(sum(_answers(pod, selector) for pod in known.values()))
    return counted


def moment(api: Api, namespace: str) -> int:
    """The resource version of now."""
    return int(api.call("GET", path_of("Pod", namespace))["metadata"]["resourceVersion"])


def _answers(pod: Json, selector: Json) -> bool:
    labels = pod["metadata"]["labels"]
    return pod_ready(pod) and all(labels.get(key) == value for key, value in selector.items())
