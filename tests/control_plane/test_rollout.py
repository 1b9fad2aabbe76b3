"""From an applied LLMDeployment to a promoted one, on a real API server with a real registry."""

from __future__ import annotations

import json
import time

import pytest

from control_plane.operator_fixtures import IMAGE, Place
from control_plane.watching import never_less_than
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
ALL = {"llm-operator.dev/deployment": "bot"}
CORRUPT = (
    '{"reason": "ModelCorrupt", "message": "model.safetensors is 12 bytes short: push the version'
    ' again"}'
)


def fatal(report: str = CORRUPT) -> dict[str, object]:
    """A pod whose fetching container gave up with a report."""
    ended = {"exitCode": 1, "reason": "Error", "message": f"loading\n{report}\n"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}
    container = {
        "name": "fetch",
        "image": IMAGE,
        "imageID": "",
        "ready": False,
        "restartCount": 1,
        "state": {"waiting": waiting},
        "lastState": {"terminated": {**ended, "startedAt": None, "finishedAt": None}},
    }
    return {"initContainerStatuses": [container]}


def test_a_deployment_gets_ready_and_says_what_it_serves(place: Place) -> None:
    model = place.model()
    place.deploy(replicas=2)
    status = place.ready()
    assert status["model"]["name"] == model
    assert status["model"]["version"] == "1"
    assert status["model"]["source"] == f"s3://models/{model}/1"
    assert status["stable"]["image"] == IMAGE
    assert status["readyReplicas"] == 2
    assert status["url"] == f"http://bot.{place.name}.svc"
    assert place.selected() == status["stable"]["revision"]
    assert "candidate" not in status
    assert place.events("RolledOut")


def test_a_moved_alias_is_rolled_out_beside_the_old_version_and_then_switched(place: Place) -> None:
    model = place.model()
    place.deploy(replicas=2)
    old = place.ready()["stable"]["revision"]
    place.kubelet.fate[place.name, "2"] = {}
    started = time.monotonic()
    place.models.promote(model, 2)
    candidate = eventually(lambda: place.status()["candidate"]["revision"])
    print(f"alias moved → candidate: {time.monotonic() - started:.2f} s")
    ready = eventually(
        lambda: c if (c := place.condition("Ready"))["status"] == "Unknown" else None
    )
    assert ready["reason"] == "RollingOut"
    assert place.condition("Available")["status"] == "True"
    assert place.selected() == old
    del place.kubelet.fate[place.name, "2"]
    assert place.ready(version="2")["stable"]["revision"] == candidate
    assert place.selected() == candidate
    eventually(lambda: (place.get("Deployment", f"bot-{old}") or {})["spec"]["replicas"] == 0)


def test_an_alias_moved_back_brings_the_old_revision_up_again(place: Place) -> None:
    model = place.model()
    place.deploy()
    first = place.ready(version="1")["stable"]["revision"]
    place.models.promote(model, 2)
    place.ready(version="2")
    place.models.promote(model, 1)
    assert place.ready(version="1")["stable"]["revision"] == first


def test_an_alias_moved_during_a_rollout_replaces_the_candidate(place: Place) -> None:
    model = place.model(versions=3)
    place.deploy()
    place.ready(version="1")
    place.kubelet.fate[place.name, "2"] = {}
    place.models.promote(model, 2)
    abandoned = eventually(lambda: place.status()["candidate"]["revision"])
    place.models.promote(model, 3)
    place.ready(version="3")
    eventually(lambda: place.get("Deployment", f"bot-{abandoned}") is None)


def test_a_corrupt_version_fails_while_the_old_one_keeps_serving(place: Place) -> None:
    model = place.model(versions=3)
    place.deploy()
    old = place.ready()["stable"]["revision"]
    place.kubelet.fate[place.name, "2"] = fatal()
    place.models.promote(model, 2)
    stalled = eventually(
        lambda: c if (c := place.condition("Stalled"))["status"] == "True" else None
    )
    assert stalled["reason"] == "ModelCorrupt"
    assert "12 bytes short" in stalled["message"]
    assert place.condition("Ready")["status"] == "False"
    assert place.condition("Available")["status"] == "True"
    assert place.selected() == old
    assert place.events("RolloutFailed")
    place.models.promote(model, 3)
    place.ready(version="3")
    assert place.condition("Stalled")["status"] == "False"


def test_a_candidate_that_misses_its_deadline_fails(place: Place) -> None:
    model = place.model()
    place.deploy(rollout={"progressDeadlineSeconds": 10})
    place.ready()
    place.kubelet.fate[place.name, "2"] = {}
    place.models.promote(model, 2)
    stalled = eventually(
        lambda: c if (c := place.condition("Stalled"))["status"] == "True" else None
    )
    assert stalled["reason"] == "ProgressDeadlineExceeded"
    failed = place.status()["candidate"]["revision"]
    del place.kubelet.fate[place.name, "2"]
    place.api.delete("Deployment", place.name, f"bot-{failed}")
    place.ready(version="2")


def test_recreate_stops_the_old_pods_before_it_starts_new_ones(place: Place) -> None:
    model = place.model()
    place.deploy(replicas=2, rollout={"strategy": "Recreate"})
    old = place.ready()["stable"]["revision"]
    place.models.promote(model, 2)
    seen: list[tuple[int, int]] = []

    def done() -> bool:
        pods = place.api.list("Pod", place.name)
        of = [pod["metadata"]["labels"]["llm-operator.dev/revision"] for pod in pods]
        seen.append((of.count(old), len(of) - of.count(old)))
        return bool(place.status()["stable"]["version"] == "2")

    eventually(done)
    assert not [both for both in seen if all(both)]


def test_stages_and_pinned_versions_are_followed_as_well(place: Place) -> None:
    model = place.model(alias=None)
    place.models.stage(model, 1, "Production")
    place.deploy("staged", mlflow={"name": model, "stage": "Production"})
    place.deploy("pinned", mlflow={"name": model, "version": 2})
    assert place.ready("staged", "1")["model"]["stage"] == "Production"
    place.ready("pinned", "2")
    place.models.stage(model, 2, "Production")
    place.ready("staged", "2")


def test_a_changed_specification_makes_a_new_revision_and_replicas_do_not(place: Place) -> None:
    place.model()
    place.deploy()
    first = place.ready()["stable"]["revision"]
    place.deploy(replicas=3)
    assert eventually(lambda: place.ready()["readyReplicas"] == 3)
    assert place.ready()["stable"]["revision"] == first
    place.deploy(replicas=3, engine={"maxModelLength": 1024})
    eventually(lambda: place.ready()["stable"]["revision"] != first)
    config = place.get("ConfigMap", f"bot-{place.status()['stable']['revision']}") or {}
    assert json.loads(config["data"]["config.json"])["engine"]["maxModelLength"] == 1024


def test_a_canary_gets_its_weight_by_pods_and_is_then_promoted(place: Place) -> None:
    model = place.model()
    steps = [{"weight": 20, "holdSeconds": 2}, {"weight": 50, "holdSeconds": 1}]
    place.deploy(replicas=4, rollout={"strategy": "Canary", "canary": {"steps": steps}})
    old = place.ready()["stable"]["revision"]
    place.models.promote(model, 2)
    status = eventually(lambda: s if (s := place.status())["candidate"]["weight"] == 20 else None)
    new = status["candidate"]["revision"]
    assert (place.get("Deployment", f"bot-{new}") or {})["spec"]["replicas"] == 1
    assert (place.get("Deployment", f"bot-{old}") or {})["spec"]["replicas"] == 4
    service = eventually(
        lambda: s if (s := place.get("Service", "bot"))["spec"]["selector"] == ALL else None
    )
    assert service
    preview = place.get("Service", "bot-candidate") or {}
    assert preview["spec"]["selector"]["llm-operator.dev/revision"] == new
    place.ready(version="2")
    assert place.selected() == new
    eventually(lambda: place.get("Service", "bot-candidate") is None)


def test_a_rolling_replaces_pod_by_pod_and_never_has_less_ready_pods(place: Place) -> None:
    model = place.model()
    place.deploy(replicas=3, rollout={"strategy": "Rolling"})
    place.ready()
    with never_less_than(place, 3):
        place.models.promote(model, 2)
        place.ready(version="2")


def test_prompts_that_nobody_can_answer_hold_the_candidate_until_its_deadline(place: Place) -> None:
    model = place.model()
    place.deploy()
    old = place.ready()["stable"]["revision"]
    gates = [{"smokePrompts": {"configMap": "smoke"}}]
    place.deploy(rollout={"strategy": "BlueGreen", "gates": gates, "progressDeadlineSeconds": 10})
    place.models.promote(model, 2)
    waits = eventually(
        lambda: c if "does not exist" in (c := place.condition("Progressing"))["message"] else None
    )
    assert "ConfigMap smoke" in waits["message"]
    stalled = eventually(
        lambda: c if (c := place.condition("Stalled"))["status"] == "True" else None
    )
    assert stalled["reason"] == "ProgressDeadlineExceeded"
    assert place.selected() == old


def test_an_abort_takes_the_candidate_back_and_a_rollback_undoes(place: Place) -> None:
    model = place.model()
    place.deploy(replicas=1, rollout={"strategy": "BlueGreen"})
    first = place.ready(version="1")["stable"]["revision"]
    place.models.promote(model, 2)
    second = place.ready(version="2")["stable"]["revision"]
    note = {"metadata": {"annotations": {"llm-operator.dev/rollback-to": first}}}
    place.api.patch("LLMDeployment", place.name, "bot", note)
    assert place.ready(version="1")["stable"]["revision"] == first
    assert "held at revision" in place.condition("Progressing")["message"]
    # As long as its pods are there it would serve again at once.
    eventually(lambda: not place.api.list("Pod", place.name, f"llm-operator.dev/revision={second}"))
    place.kubelet.fate[place.name, "2"] = {}
    undo = {
        "metadata": {
            "annotations": {"llm-operator.dev/rollback-to": None, "llm-operator.dev/rollout": None}
        }
    }
    place.api.patch("LLMDeployment", place.name, "bot", undo)
    eventually(lambda: place.status()["candidate"]["revision"] == second)
    abort = {"metadata": {"annotations": {"llm-operator.dev/rollout": "abort"}}}
    place.api.patch("LLMDeployment", place.name, "bot", abort)
    eventually(lambda: place.status()["candidate"]["reason"] == "Aborted")
    assert place.selected() == first
