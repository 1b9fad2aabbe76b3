"""A candidate that is sent copies of requests:
what pods are told of it, and what the gates make of what they tell."""

from __future__ import annotations

import base64
from itertools import count

import pytest

from control_plane.operator_fixtures import Place
from control_plane.pod_metrics import pod_metrics
from llm_runtime.contract import SHADOW_FILE, ShadowFile
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def shadow_file(place: Place) -> ShadowFile | None:
    text = (place.get("Secret", "bot-keys") or {})["data"].get(SHADOW_FILE)
    return ShadowFile.model_validate_json(base64.b64decode(text)) if text else None


def test_running_pods_are_told_of_a_candidate_and_their_count_takes_it_back_before_any_traffic(
    place: Place,
) -> None:
    model = place.model()
    with pod_metrics() as stable:
        place.kubelet.fate[place.name, "1"] = stable.ready
        gate = {"shadowAgreement": {"minExact": 0.95}, "minRequests": 50}
        place.deploy(rollout={"strategy": "BlueGreen", "shadow": {"percent": 50}, "gates": [gate]})
        old = place.ready()["stable"]["revision"]
        generation = (place.get("Deployment", f"bot-{old}") or {})["metadata"]["generation"]
        assert shadow_file(place) is None
        place.models.promote(model, 2)
        found = eventually(lambda: shadow_file(place))
        new = place.status()["candidate"]["revision"]
        service = place.get("Service", "bot-candidate") or {}
        assert (found.stable, found.candidate, found.percent) == (f"bot-{old}", f"bot-{new}", 50)
        assert found.url == f"http://{service['spec']['clusterIP']}:80"
        asked = count(1)

        def failed() -> bool:
            number = next(asked)
            stable.copied(f"bot-{new}", 20 * number, 10 * number)
            return place.status()["candidate"].get("outcome") == "Failed"

        eventually(failed)
        candidate = place.status()["candidate"]
        assert candidate["reason"] == "GateFailed"
        assert "gate shadowAgreement minExact is 0.5" in candidate["message"]
        assert "trafficSince" not in candidate
        assert place.selected() == old
        eventually(lambda: shadow_file(place) is None)
        assert (place.get("Deployment", f"bot-{old}") or {})["metadata"]["generation"] == generation
