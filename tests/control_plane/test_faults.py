"""What may go wrong around the operator:
the last good version keeps serving, and the status says what to do."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from control_plane.operator_fixtures import Models, Operator, Place
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def says(place: Place, kind: str, reason: str, name: str = "bot") -> dict[str, Any]:
    """Wait until a condition carries the reason."""
    return dict(
        eventually(lambda: c if (c := place.condition(kind, name))["reason"] == reason else None)
    )


@pytest.mark.parametrize(
    ("mlflow", "reason", "named"),
    [
        ({"name": "nobody", "alias": "champion"}, "ModelNotFound", "nobody"),
        ({"alias": "absent"}, "AliasNotFound", "absent"),
        ({"version": 99}, "VersionNotFound", "99"),
        ({"stage": "Staging"}, "VersionNotFound", "Staging"),
        ({"alias": "champion", "connection": "nowhere"}, "ConnectionUnknown", "nowhere"),
    ],
)
def test_a_reference_that_stands_for_nothing_is_named(
    place: Place, mlflow: dict[str, Any], reason: str, named: str
) -> None:
    model = place.model()
    place.deploy(mlflow={"name": model, **mlflow})
    ready = says(place, "Ready", reason)
    assert ready["status"] == "False"
    assert named in ready["message"]
    assert place.condition("Stalled")["status"] == "True"
    assert place.events(reason)


def test_a_removed_alias_stalls_while_the_last_version_serves_and_heals_when_it_is_back(
    place: Place,
) -> None:
    model = place.model()
    place.deploy()
    revision = place.ready()["stable"]["revision"]
    place.models.remove_alias(model)
    assert says(place, "Stalled", "AliasNotFound")["status"] == "True"
    assert place.condition("Available")["status"] == "True"
    assert place.selected() == revision
    place.models.promote(model, 1)
    place.ready(version="1")


def test_while_mlflow_is_down_everything_keeps_serving(place: Place, models: Models) -> None:
    model = place.model()
    place.deploy()
    revision = place.ready()["stable"]["revision"]
    models.server.stop()
    try:
        says(place, "RegistryReachable", "RegistryUnreachable")
        assert place.condition("Ready")["status"] == "True"
        assert place.condition("ModelResolved")["status"] == "True"
        place.deploy(replicas=2)
        eventually(lambda: place.ready()["readyReplicas"] == 2)
        assert place.selected() == revision
        assert eventually(lambda: place.events("RegistryUnreachable"))
    finally:
        models.server.start()
    says(place, "RegistryReachable", "Reachable")
    place.models.promote(model, 2)
    place.ready(version="2")


@pytest.fixture
def stubborn(operator: Operator) -> Iterator[type[http.server.BaseHTTPRequestHandler]]:
    """A connection `stubborn` whose server answers every question with `code` and `text`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        code = 401
        text = '{"error_code": "UNAUTHENTICATED"}'

        def do_GET(self) -> None:
            self.send_response(self.code)
            self.end_headers()
            self.wfile.write(self.text.encode())

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    operator.settings["connections"]["stubborn"] = {
        "trackingUri": f"http://127.0.0.1:{server.server_port}"
    }
    operator.write()
    yield Handler
    del operator.settings["connections"]["stubborn"]
    operator.write()
    server.shutdown()


def test_refused_credentials_and_a_refused_host_are_told_apart(
    place: Place, stubborn: type[http.server.BaseHTTPRequestHandler]
) -> None:
    place.deploy(mlflow={"name": "any", "alias": "champion", "connection": "stubborn"})
    assert "password" in says(place, "Ready", "RegistryDenied")["message"]
    stubborn.code = 403
    stubborn.text = "Invalid Host header - possible DNS rebinding attack detected"  # type: ignore[attr-defined]
    assert "--allowed-hosts" in says(place, "Ready", "HostNotAllowed")["message"]


def test_a_hand_edited_deployment_is_put_right_within_seconds(place: Place) -> None:
    place.model()
    place.deploy()
    name = f"bot-{place.ready()['stable']['revision']}"
    before = (place.get("Deployment", name) or {})["spec"]["template"]["spec"]["containers"][0][
        "image"
    ]
    started = time.monotonic()
    change = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil"}]
    place.api.call(
        "PATCH",
        f"/apis/apps/v1/namespaces/{place.name}/deployments/{name}",
        change,
        "application/json-patch+json",
    )
    eventually(
        lambda: (
            (place.get("Deployment", name) or {})["spec"]["template"]["spec"]["containers"][0][
                "image"
            ]
            == before
        ),
        5,
    )
    print(f"drift put right: {time.monotonic() - started:.2f} s")


@pytest.mark.parametrize(
    "kind",
    ["Service", "ServiceAccount", "PodDisruptionBudget", "Deployment", "ConfigMap", "Secret"],
)
def test_a_deleted_child_is_made_again(place: Place, kind: str) -> None:
    place.model()
    place.deploy(replicas=2)
    revision = place.ready()["stable"]["revision"]
    name = {
        "Deployment": f"bot-{revision}",
        "ConfigMap": f"bot-{revision}",
        "Secret": "bot-keys",
    }.get(kind, "bot")
    before = place.get(kind, name) or {}
    place.api.delete(kind, place.name, name)
    after = eventually(
        lambda: (
            o
            if (o := place.get(kind, name) or {})["metadata"]["uid"] != before["metadata"]["uid"]
            else None
        )
    )
    if kind != "ConfigMap":
        assert after.get("data") == before.get("data")
    assert place.ready()["stable"]["revision"] == revision


def test_somebody_elses_object_with_a_childs_name_is_left_alone(place: Place) -> None:
    place.model()
    meta = {"name": "bot", "namespace": place.name}
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"ports": [{"port": 1}]},
    }
    place.api.apply(foreign)
    place.deploy()
    assert "kubectl" in says(place, "Ready", "NameTaken")["message"]
    assert (place.get("Service", "bot") or {})["spec"]["ports"][0]["port"] == 1
    place.api.delete("Service", place.name, "bot")
    place.ready()


def test_a_pod_that_finds_no_node_names_the_scarce_resource(place: Place) -> None:
    place.model()
    place.deploy(resources={"limits": {"nvidia.com/gpu": 1}})
    available = says(place, "Available", "PodUnschedulable")
    assert "not enough nvidia.com/gpu" in available["message"]
    assert place.condition("Ready")["status"] == "Unknown"


def test_refused_pods_are_told(place: Place) -> None:
    place.model()
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    place.api.call("POST", f"/api/v1/namespaces/{place.name}/resourcequotas", quota)
    place.deploy()
    assert "exceeded quota" in says(place, "Available", "PodsRefused")["message"]


def the_pod(place: Place) -> str:
    return str(eventually(lambda: place.api.list("Pod", place.name))[0]["metadata"]["name"])


@pytest.mark.parametrize(
    ("told", "words", "reason", "advice"),
    [
        ("FailedAttachVolume", "Multi-Attach error for volume v", "AttachFailed", "ReadWriteMany"),
        ("FailedMount", "references non-existent secret key", "MountFailed", "must exist"),
        (
            "FailedCreatePodSandBox",
            'no runtime for "nvidia" is configured',
            "SandboxFailed",
            "runtimeClassName",
        ),
    ],
)
def test_what_only_events_say_of_a_waiting_pod_is_told(
    place: Place, told: str, words: str, reason: str, advice: str
) -> None:
    place.kubelet.fate[place.name, "1"] = {}
    place.model()
    place.deploy()
    pod = the_pod(place)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {
        "metadata": {"name": f"{pod}.1", "namespace": place.name}, "type": "Warning", "reason": told, "message": words,
        "involvedObject": {"kind": "Pod", "name": pod, "namespace": place.name}, "lastTimestamp": now,
    }  # fmt: skip
    began = time.monotonic()
    place.api.call("POST", f"/api/v1/namespaces/{place.name}/events", event)
    available = says(place, "Available", reason)
    print(f"{told} → status: {time.monotonic() - began:.1f} s")
    assert words in available["message"]
    assert advice in available["message"]


def test_a_container_killed_for_its_memory_is_told_once_and_after_it_is_ready_again(
    place: Place,
) -> None:
    place.model()
    place.deploy()
    place.ready()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    last = {
        "exitCode": 0,
        "reason": "OOMKilled",
        "finishedAt": now,
        "startedAt": now,
        "containerID": "c://1",
    }
    container = {
        "name": "runtime", "image": "i", "imageID": "", "ready": False, "restartCount": 1,
        "state": {"running": {"startedAt": now}}, "lastState": {"terminated": last},
    }  # fmt: skip
    moment = {"lastTransitionTime": now}
    scheduled = {"type": "PodScheduled", "status": "True", **moment}

    def said(ready: str) -> dict[str, Any]:
        conditions = [
            scheduled,
            *({"type": kind, "status": ready, **moment} for kind in ("Ready", "ContainersReady")),
        ]
        return {"phase": "Running", "conditions": conditions, "containerStatuses": [container]}

    place.kubelet.fate[place.name, "1"] = said("False")
    assert "spec.resources.limits.memory" in says(place, "Available", "OutOfMemory")["message"]
    place.kubelet.fate[place.name, "1"] = said("True")
    place.ready()
    assert "containers were restarted 1 time" in place.condition("Ready")["message"]
    assert len(place.events("OutOfMemory")) == 1
