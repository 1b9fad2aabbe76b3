"""The life of a roll-out as an API server tells it to watchers:
at every word of ours, kstatus and Argo CD agree."""

from __future__ import annotations

import signal

import pytest

from control_plane.operator_fixtures import Json, Operator, Place
from control_plane.test_rollout import fatal
from control_plane.watching import recorded
from devstack.judges import Verdict, judge
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def read_by_hand(resource: Json) -> tuple[str, str]:
    """What (kstatus, Argo CD) should say, by the table in docs/operations.md."""
    meta = resource["metadata"]
    status = resource.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    if "deletionTimestamp" in meta:
        return "Terminating", "Progressing"
    if status.get("observedGeneration") != meta["generation"]:
        return "InProgress", "Progressing"
    if conditions["Stalled"]["status"] == "True":
        return "Failed", "Degraded"
    if conditions["Ready"]["reason"] in ("Suspended", "ScaledToZero"):
        return "InProgress", "Suspended"
    if conditions["Ready"]["status"] == "True":
        return "Current", "Healthy"
    return "InProgress", "Progressing"


def changes(objects: list[Json], verdicts: list[Verdict]) -> list[str]:
    """Argo CD's word and our reason, each time one of them changes."""
    told = []
    for resource, verdict in zip(objects, verdicts, strict=True):
        conditions = {c["type"]: c for c in resource["status"]["conditions"]}
        said = f"{verdict.argo} {conditions['Ready']['reason']}"
        if not told or told[-1] != said:
            told.append(said)
    return told


def test_watchers_read_the_life_of_a_rollout_as_we_mean_it(
    place: Place, operator: Operator
) -> None:
    model = place.model(versions=3)
    with recorded(place.api, "LLMDeployment", place.name) as life:
        operator.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]  # Stopped: nobody looks for now.
        try:
            place.deploy(replicas=2)
            eventually(lambda: life)
        finally:
            operator.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        place.ready(version="1")
        place.models.promote(model, 2)
        place.ready(version="2")
        place.kubelet.fate[place.name, "3"] = fatal()
        place.models.promote(model, 3)
        eventually(lambda: place.condition("Stalled")["status"] == "True")
        place.models.promote(model, 2)
        place.ready(version="2")
        place.deploy(replicas=2, suspend=True)
        eventually(lambda: place.condition("Ready")["reason"] == "Suspended")
        place.deploy(replicas=2)
        place.ready()
        place.api.delete("LLMDeployment", place.name, "bot", propagationPolicy="Foreground")
        eventually(lambda: place.get("LLMDeployment", "bot") is None)
    verdicts = judge(life)
    wrong = [
        (wanted, verdict, resource.get("status"))
        for resource, verdict in zip(life, verdicts, strict=True)
        if (wanted := read_by_hand(resource)) != (verdict.kstatus, verdict.argo)
    ]
    assert not wrong
    told = changes(life, verdicts)
    print("\n".join(told))
    assert life[0]["status"]["conditions"][0]["reason"] == "Pending"
    wanted = iter(
        ["Progressing Pending", "Progressing RollingOut", "Healthy Serving", "Progressing RollingOut",
         "Healthy Serving", "Degraded ModelCorrupt", "Healthy Serving", "Suspended Suspended", "Healthy Serving",
         "Progressing Serving"]
    )  # fmt: skip
    step = next(wanted)
    for each in told:
        if each == step:
            step = next(wanted, "")
    assert step == "", f"{step} was never told, or not in this place: {told}"
