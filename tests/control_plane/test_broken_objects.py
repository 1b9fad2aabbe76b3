"""Beside a tenant's many broken objects another tenant's changes go on as if it were alone.

BROKEN_OBJECTS=5000 makes so many (hack/bench broken does); what is measured is printed.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control_plane.operator_fixtures import (
    Api,
    Json,
    Models,
    Operator,
    Place,
    PlayedKubelet,
    settings,
)
from control_plane.test_apikeys import known
from llm_operator.crds import API_VERSION
from secrets_told import invented
from waiting import eventually

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(3600)]
pytest_plugins = ["control_plane.operator_fixtures"]
COUNT = int(os.environ.get("BROKEN_OBJECTS", "50"))
DEAR = 3
"""Of the smoke prompts: each takes a child process for two seconds."""
REVOKED_SECONDS = 10.0
"""Within so long a key is revoked, however much another tenant has broken.
Alone it takes a fraction of a second."""
NOT_LOOKED_AT = ("Pending", "Resolving")
"""Reasons of Ready before an operator has looked at an object, and while it looks."""
LINES_AN_OBJECT = 6
STEADY_SECONDS = 20.0
STEADY_LINES_A_SECOND = 5.0
MEMORY_MIB = 512
PATIENCE_SECONDS = 240 + COUNT * 0.5


@pytest.fixture
def own(quiet: None, account: Path, models: Models, tmp_path: Path) -> Iterator[Operator]:
    """An operator with the pace that it has by default,
    as looks that come back by themselves count here."""
    chosen = settings(models)
    pace = {"workers": 8, "pollSeconds": 30, "verifySeconds": 60, "settleSeconds": 1}
    # A Lease of three seconds is lost where the machine is busy, and with it all that is measured.
    lease = {**chosen["lease"], "durationSeconds": 30, "renewDeadlineSeconds": 20}
    running = Operator(
        tmp_path, account, {**chosen, **pace, "lease": lease}, "broken", restarts=True
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def places(
    api: Api, own: Operator, kubelet: PlayedKubelet, models: Models
) -> Iterator[tuple[Place, Place]]:
    """The neighbour's namespace and that of the broken objects."""
    stamp = time.time_ns() % 10**10
    made = [Place(api, f"{name}{stamp}", kubelet, models) for name in ("good", "broken")]
    for place in made:
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": place.name}})
    yield made[0], made[1]
    for place in made:
        api.call("DELETE", f"/api/v1/namespaces/{place.name}")


def broken(number: int) -> Json:
    """One of ten kinds of objects with which something is wrong;
    only the API server may take it for right."""
    model: Json = {"mlflow": {"name": f"nobody-{number}", "alias": "champion"}}
    there: Json = {"mlflow": {"name": "there", "alias": "champion"}}
    kinds: tuple[tuple[str, Json], ...] = (
        ("LLMDeployment", {"model": model}),
        ("LLMDeployment", {"model": {"mlflow": {"name": "there", "alias": f"absent-{number}"}}}),
        ("LLMDeployment", {"model": {"mlflow": {"name": "there", "version": "99"}}}),
        (
            "LLMDeployment",
            {"model": {"mlflow": {"name": "there", "alias": "champion", "connection": "nowhere"}}},
        ),
        ("LLMDeployment", {"model": there, "pod": {"priorityClassName": "system-node-critical"}}),
        (
            "LLMDeployment",
            {"model": model, "database": {"secretRef": {"name": "absent", "key": "url"}}},
        ),
        (
            "LLMDeployment",
            {"model": {"uri": f"hf://a/b@{0:040d}", "credentialsSecretRef": {"name": "absent"}}},
        ),
        ("ApiKey", {"owner": "o", "deployments": [f"absent-{number}"]}),
        ("ApiKey", {"owner": "o", "selector": {"matchLabels": {"team": "nobody"}}}),
        ("ApiKey", {"owner": "o", "deployments": ["bot"], "secretName": "taken"}),
    )
    kind, spec = kinds[number % len(kinds)]
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": f"broken-{number}"},
        "spec": spec,
    }


def dear(place: Place, number: int) -> None:
    """A deployment whose smoke prompts are as dear to read as a ConfigMap can make them."""
    data = {
        f"p{each}": "prompt: a\nexpect: {jsonSchema: " + "{not: " * 25 + "{}" + "}" * 25 + "}"
        for each in range(50)
    }
    place.api.apply({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                     "metadata": {"name": f"dear-{number}", "namespace": place.name}})  # fmt: skip
    place.deploy(
        f"dear-{number}",
        model="there",
        rollout={"gates": [{"smokePrompts": {"configMap": f"dear-{number}"}}]},
    )


def test_a_tenants_broken_objects_hold_up_nobody_else(
    own: Operator, places: tuple[Place, Place], models: Models
) -> None:
    good, bad = places
    models.create("there")
    good.model()
    good.deploy(rollout={"drainSeconds": 1})
    good.key(deployments=["bot"])
    good.ready(seconds=PATIENCE_SECONDS)
    eventually(
        lambda: good.condition("Ready", "team", "ApiKey")["status"] == "True", PATIENCE_SECONDS
    )
    numbers = itertools.count()
    alone = [_changed(good, next(numbers)) for _ in range(3)]
    idle = _steady(own, good.api)

    meta = {"name": "taken", "namespace": bad.name}
    bad.api.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": meta,
            "stringData": {"a": invented("taken")},
        }
    )
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"count/secrets": str(COUNT // 10)}}}
    bad.api.call("POST", f"/api/v1/namespaces/{bad.name}/resourcequotas", quota)
    lines = _lines(own)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as people:
        making = [people.submit(_make, bad, number) for number in range(COUNT)]
        for number in range(DEAR):
            dear(bad, number)
        beside = [_changed(good, next(numbers)) for _ in range(3)]
        for each in making:
            each.result()
    made = time.monotonic() - began
    eventually(lambda: not _untold(bad), PATIENCE_SECONDS)
    told = time.monotonic() - began
    said = _lines(own) - lines
    afterwards = [_changed(good, next(numbers)) for _ in range(3)]
    steady = _steady(own, good.api)

    print(
        f"\n{COUNT} broken objects, made within {made:.0f} s, all told after {told:.0f} s, {said} lines of the log"
    )
    for name, found in (("alone", alone), ("while they come", beside), ("afterwards", afterwards)):
        changed, revoked = (sorted(each)[1] for each in zip(*found, strict=True))
        print(
            f"{name}: specification changed → serves {changed:.1f} s,"
            f" key suspended → in the key file {revoked:.2f} s (medians)"
        )
    for name, (log, requests, memory) in (("alone", idle), ("afterwards", steady)):
        print(
            f"{name}: {log:.1f} lines/s, {requests:.0f} requests/s of all clients, {memory:.0f} MiB"
        )
    assert max(revoked for _, revoked in (*beside, *afterwards)) < REVOKED_SECONDS
    assert said <= LINES_AN_OBJECT * (COUNT + DEAR) + STEADY_LINES_A_SECOND * told
    assert steady[0] <= STEADY_LINES_A_SECOND
    assert steady[2] < MEMORY_MIB
    assert not own.ends, own.ends[0]


def _make(place: Place, number: int) -> None:
    manifest = broken(number)
    place.api.apply({**manifest, "metadata": {**manifest["metadata"], "namespace": place.name}})


def _changed(place: Place, number: int) -> tuple[float, float]:
    """Seconds until a changed specification serves, and until a suspended key is so in the key
    file."""
    before = place.status()["stable"]["revision"]
    began = time.monotonic()
    annotations = {"example.com/change": str(number)}
    place.api.patch(
        "LLMDeployment", place.name, "bot", {"spec": {"pod": {"annotations": annotations}}}
    )
    eventually(lambda: place.status()["stable"]["revision"] != before, PATIENCE_SECONDS)
    changed = time.monotonic() - began
    began = time.monotonic()
    for suspended in (True, False):
        place.key(deployments=["bot"], suspended=suspended)
        eventually(lambda wanted=suspended: _suspended(place) is wanted, PATIENCE_SECONDS)
    return changed, (time.monotonic() - began) / 2


def _suspended(place: Place) -> bool:
    (key,) = known(place)["keys"]
    return bool(key.get("suspended", False))


def _untold(place: Place) -> list[str]:
    """Objects whose status does not say what is wrong with them."""
    time.sleep(1)  # The machine is for those under test.
    found = [
        each for kind in ("LLMDeployment", "ApiKey") for each in place.api.list(kind, place.name)
    ]
    assert len(found) == COUNT + DEAR
    return [each["metadata"]["name"] for each in found if not _says(each)]


def _says(resource: Json) -> bool:
    """Whether it says what is wrong. A selector that finds nothing is no fault."""
    conditions = {c["type"]: c for c in resource.get("status", {}).get("conditions", [])}
    ready: Json = conditions.get("Ready", {})
    return ready.get("status") == "True" or ready.get("reason", "Pending") not in NOT_LOOKED_AT


def _lines(operator: Operator) -> int:
    return operator.log.read_bytes().count(b"\n")


def _steady(operator: Operator, api: Api) -> tuple[float, float, float]:
    """Of a while in which nobody changes anything:
    lines of the log and requests a second, and MiB of memory."""
    before: tuple[int, float] = _lines(operator), _requests(api)
    time.sleep(STEADY_SECONDS)
    lines = _lines(operator) - before[0]
    requests = _requests(api) - before[1]
    assert operator.process is not None
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return lines / STEADY_SECONDS, requests / STEADY_SECONDS, memory / 1024


def _requests(api: Api) -> float:
    text = api.client.get("/metrics").text
    samples = [line for line in text.splitlines() if line.startswith("apiserver_request_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in samples)
