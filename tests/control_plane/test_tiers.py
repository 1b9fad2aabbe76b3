"""Tiers and the database on a real API server,
with the chart's rights: what reaches running pods, what is told."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from control_plane.operator_fixtures import Place
from secrets_told import invented
from waiting import eventually

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]


def key_file(place: Place) -> dict[str, Any]:
    data = (place.get("Secret", "bot-keys") or {})["data"]
    return dict(json.loads(base64.b64decode(data["keys.json"])))


def pods(place: Place) -> set[str]:
    return {pod["metadata"]["uid"] for pod in place.api.list("Pod", place.name)}


def test_changed_tiers_reach_the_key_file_at_once_and_no_pod_is_replaced(place: Place) -> None:
    place.model()
    tier = {"name": "free", "requestsPerMinute": 10}
    place.deploy(access={"defaultTier": "free", "tiers": [tier]})
    revision = place.ready()["stable"]["revision"]
    running = pods(place)
    place.deploy(
        access={
            "defaultTier": "free",
            "tiers": [{**tier, "requestsPerMinute": 99, "tokensPerMonth": 10**12}],
        }
    )
    eventually(lambda: key_file(place)["tiers"][0]["requestsPerMinute"] == 99)
    assert key_file(place)["tiers"][0]["tokensPerMonth"] == 10**12
    eventually(lambda: place.status()["observedGeneration"] == 2)
    assert (place.status()["stable"]["revision"], pods(place)) == (revision, running)


def test_a_key_with_an_unknown_tier_is_told_and_heals_when_the_tier_is_written(
    place: Place,
) -> None:
    place.model()
    place.deploy()
    place.key(deployments=["bot"], tier="gold")
    eventually(lambda: place.condition("Ready", "team", "ApiKey")["reason"] == "TierUnknown")
    place.deploy(access={"tiers": [{"name": "gold"}]})
    eventually(lambda: place.condition("Ready", "team", "ApiKey")["status"] == "True")
    eventually(lambda: key_file(place)["keys"][0]["tier"] == "gold")


def test_a_missing_database_secret_is_told_and_found_when_it_is_made(place: Place) -> None:
    place.model()
    place.deploy(database={"secretRef": {"name": "usage-db", "key": "url"}})
    told = eventually(
        lambda: c if (c := place.condition("UsagePersistent"))["status"] == "False" else None
    )
    assert told["reason"] == "DatabaseSecretMissing"
    eventually(lambda: place.events("DatabaseSecretMissing"))
    meta = {"name": "usage-db", "namespace": place.name}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta,
        "stringData": {"url": f"postgresql://a:{invented('database')}@c/d"},
    }
    place.api.apply(secret)
    eventually(lambda: place.condition("UsagePersistent")["reason"] == "DatabaseConfigured")
