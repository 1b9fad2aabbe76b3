"""What the status says while pods fetch: a running operator asks pods over HTTP,
at the addresses in their status."""

from __future__ import annotations

import time
from typing import Any

import pytest

from control_plane.operator_fixtures import Place
from control_plane.pod_metrics import MOMENT, pod_metrics
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def said(place: Place, kind: str, text: str) -> dict[str, Any]:
    condition = place.condition(kind)
    assert condition["reason"] == "Downloading", condition
    assert text in condition["message"]
    return condition


def test_a_download_moves_in_the_status_and_ends_without_a_trace(place: Place) -> None:
    place.model()
    with pod_metrics() as pod:
        pod.downloaded(630e6, 1e9, 41e6)
        place.kubelet.fate[place.name, "1"] = pod.fetching({"running": {"startedAt": MOMENT}})
        place.deploy()
        for kind in ("Progressing", "Ready", "Reconciling"):
            eventually(lambda kind=kind: said(place, kind, "downloading 63 %, 41 MB/s, 9 s left"))  # type: ignore[misc]
        pod.downloaded(910e6, 1e9, 41e6)
        eventually(lambda: said(place, "Progressing", "downloading 91 %, 41 MB/s, 2 s left"))
        ended = {"terminated": {"exitCode": 0, "startedAt": MOMENT, "finishedAt": MOMENT}}
        place.kubelet.fate[place.name, "1"] = {**pod.fetching(ended), **pod.ready}
        place.ready()
        asked = pod.asked
        version = (place.get("LLMDeployment", "bot") or {})["metadata"]["resourceVersion"]
        time.sleep(7)
        assert pod.asked == asked
        assert (place.get("LLMDeployment", "bot") or {})["metadata"]["resourceVersion"] == version
        assert not place.events("Downloading")
