"""A canary whose shares an HTTPRoute keeps, on an API server with the Gateway API's own CRD."""

from __future__ import annotations

from functools import partial

import pytest

from control_plane.operator_fixtures import Api, Json, Operator, Place, established
from control_plane.watching import recorded
from devstack.gateway import http_route_crd
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]

ROUTE = {
    "parentRefs": [{"name": "public", "namespace": "gateways"}],
    "hostnames": ["bot.example.com"],
}
STEPS = [{"weight": 5, "holdSeconds": 1}, {"weight": 50, "holdSeconds": 1}]
ONLY_STABLE = {"bot-stable": 100}


@pytest.fixture(scope="module", autouse=True)
def gateway_api(api: Api, operator: Operator) -> None:
    """The CRD, and an operator that has not looked for it before:
    it remembers for a minute what the cluster serves.

    The CRD stays when these tests end, for the same reason.
    """
    crd = http_route_crd()
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    api.call("PATCH", path, crd, "application/apply-patch+yaml", fieldManager="test", force="true")
    eventually(partial(established, api, path))
    operator.stop()
    operator.start()


def deploy(place: Place, **rollout: object) -> None:
    canary = {"steps": STEPS, "httpRoute": ROUTE}
    place.deploy(replicas=2, rollout={"strategy": "Canary", "canary": canary, **rollout})


def weights(route: Json) -> dict[str, int]:
    (rule,) = route["spec"]["rules"]
    return {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}


def shares(life: list[Json]) -> list[dict[str, int]]:
    """The weights of a route, each time they change."""
    found: list[dict[str, int]] = []
    for route in life:
        if not found or found[-1] != weights(route):
            found.append(weights(route))
    return found


def test_weights_are_exact_at_each_step_and_whole_again_after_the_promotion(
    place: Place, operator: Operator
) -> None:
    model = place.model()
    with recorded(place.api, "HTTPRoute", place.name) as life:
        deploy(place)
        old = place.ready()["stable"]["revision"]
        eventually(lambda: life)
        place.models.promote(model, 2)
        status = eventually(
            lambda: s if (s := place.status())["candidate"]["weight"] == 5 else None
        )
        new = status["candidate"]["revision"]
        stable = place.get("Service", "bot-stable")
        candidate = place.get("Service", "bot-candidate")
        assert (stable or {})["spec"]["selector"]["llm-operator.dev/revision"] == old
        assert (candidate or {})["spec"]["selector"]["llm-operator.dev/revision"] == new
        assert place.selected() == old
        place.ready(version="2")
        eventually(lambda: weights(place.get("HTTPRoute", "bot") or {}) == ONLY_STABLE)
    told = shares(life)
    print(told)
    assert told == [
        ONLY_STABLE,
        {"bot-stable": 100, "bot-candidate": 0},
        {"bot-stable": 95, "bot-candidate": 5},
        {"bot-stable": 50, "bot-candidate": 50},
        ONLY_STABLE,
    ]
    route = place.get("HTTPRoute", "bot") or {}
    assert route["spec"]["hostnames"] == ROUTE["hostnames"]
    assert route["spec"]["rules"][0]["backendRefs"][0]["port"] == 80
    parent = route["spec"]["parentRefs"][0]
    assert (parent["name"], parent["namespace"], parent["kind"]) == (
        "public",
        "gateways",
        "Gateway",
    )
    service = place.get("Service", "bot-stable") or {}
    assert service["spec"]["selector"]["llm-operator.dev/revision"] == new
    assert place.condition("Applied")["status"] == "True"
    place.look_again(operator)
    (name, count), *_ = [each for each in operator.writes().items() if "HTTPRoute" in each[0]]
    place.look_again(operator, 1)
    assert operator.writes()[name] == count, "what has not changed is not applied"


def test_a_candidate_that_is_aborted_has_no_share_left(place: Place) -> None:
    model = place.model()
    deploy(place, canary={"steps": [{"weight": 5, "holdSeconds": 600}], "httpRoute": ROUTE})
    old = place.ready()["stable"]["revision"]
    place.models.promote(model, 2)
    eventually(
        lambda: (
            weights(place.get("HTTPRoute", "bot") or {}) == {"bot-stable": 95, "bot-candidate": 5}
        )
    )
    abort = {"metadata": {"annotations": {"llm-operator.dev/rollout": "abort"}}}
    place.api.patch("LLMDeployment", place.name, "bot", abort)
    eventually(lambda: weights(place.get("HTTPRoute", "bot") or {}) == ONLY_STABLE)
    eventually(lambda: place.get("Service", "bot-candidate") is None)
    service = place.get("Service", "bot-stable") or {}
    assert service["spec"]["selector"]["llm-operator.dev/revision"] == old


def test_a_route_that_is_not_asked_for_any_more_goes_with_its_service(place: Place) -> None:
    place.model()
    deploy(place)
    place.ready()
    eventually(lambda: place.get("HTTPRoute", "bot"))
    deploy(place, canary={"steps": STEPS})
    eventually(lambda: place.get("HTTPRoute", "bot") is None)
    eventually(lambda: place.get("Service", "bot-stable") is None)
    place.ready()
