"""What `kubectl get llmd` shows in each state of a roll-out, in a terminal of 100 columns."""

from __future__ import annotations

import re
from typing import Any

import pytest

from control_plane.operator_fixtures import Place
from devstack.cluster import Cluster
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
NAME = "support-bot"
CORRUPT: dict[str, Any] = {
    "initContainerStatuses": [
        {
            "name": "fetch",
            "image": "x",
            "imageID": "",
            "ready": False,
            "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {
                "terminated": {
                    "exitCode": 1,
                    "reason": "Error",
                    "message": '{"reason": "ModelCorrupt", "message": "12 bytes short"}\n',
                    "startedAt": None,
                    "finishedAt": None,
                }
            },
        }
    ]
}


def row(cluster: Cluster, place: Place, *options: str) -> dict[str, str]:
    """The one line by its headings."""
    head, line = cluster.kubectl("get", "llmd", "-n", place.name, *options).splitlines()
    if not options:
        assert len(line) <= 100, line
    starts = [match.start() for match in re.finditer(r"\S+", head)]
    ends = [*starts[1:], max(len(head), len(line))]
    return {head[a:b].strip().lower(): line[a:b].strip() for a, b in zip(starts, ends, strict=True)}


def shows(cluster: Cluster, place: Place, **cells: str) -> None:
    def holds() -> bool:
        found = row(cluster, place)
        assert {name: found[name] for name in cells} == cells
        return True

    assert eventually(holds)


def test_a_row_tells_an_outage_from_a_failed_candidate_and_both_versions(cluster: Cluster, place: Place) -> None:
    model = place.model(versions=3)
    steps = [{"weight": 50, "holdSeconds": 600}]
    spec: dict[str, Any] = {"replicas": 2, "rollout": {"strategy": "Canary", "canary": {"steps": steps}}}
    place.kubelet.fate[place.name, "1"] = {}
    place.deploy(NAME, **spec)
    first = {"ready": "Unknown", "available": "False", "reason": "RollingOut", "version": "", "target": "1"}
    shows(cluster, place, **first, desired="2")
    del place.kubelet.fate[place.name, "1"]
    steady = {"ready": "True", "available": "True", "reason": "Serving", "version": "1", "target": ""}
    shows(cluster, place, **steady, pods="2")
    place.kubelet.fate[place.name, "2"] = CORRUPT
    place.models.promote(model, 2)
    failed = {"ready": "False", "available": "True", "reason": "ModelCorrupt", "version": "1", "target": "2"}
    shows(cluster, place, **failed, pods="2")
    place.models.promote(model, 3)
    shows(cluster, place, ready="Unknown", available="True", reason="RollingOut", version="1", target="3")
    place.deploy(NAME, **spec, suspend=True)
    shows(cluster, place, ready="False", available="False", reason="Suspended", version="1", pods="0", desired="2")
    wide = row(cluster, place, "-o", "wide")
    assert (wide["model"], wide["url"]) == (model, f"http://{NAME}.{place.name}.svc")
