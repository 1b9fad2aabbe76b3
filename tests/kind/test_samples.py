"""The samples that need more than small nodes have:
smaller requests, and beside them what they name."""

import base64
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from devstack.registry import push
from kind.site import ROOT, Front, Site
from kind.volumes import volume
from postgres import Postgres, postgres
from unit.runtime import tiny_model

pytestmark = pytest.mark.kind

SAMPLES = ROOT / "manifests" / "samples"
SMALL = {"requests": {"cpu": "50m", "memory": "256Mi"}}


def sample(file: str) -> list[dict[str, Any]]:
    """Its objects, small enough for these nodes."""
    objects = list(yaml.safe_load_all((SAMPLES / file).read_text()))
    for each in objects:
        if each["kind"] == "LLMDeployment":
            each["spec"]["resources"] = SMALL
            each["spec"]["engine"] = {"maxModelLength": 256, "maxBatchSize": 4}
    return objects


def apply(site: Site, objects: list[dict[str, Any]]) -> None:
    every = {"apiVersion": "v1", "kind": "List", "items": objects}
    # YAML has moments, which JSON writes as text.
    site.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(every, default=datetime.isoformat))


def delete(site: Site, objects: list[dict[str, Any]]) -> None:
    names = [f"{each['kind']}/{each['metadata']['name']}" for each in objects]
    site.cluster.kubectl("delete", *names, "--ignore-not-found", "--timeout=120s")


@pytest.fixture
def database(site: Site) -> Iterator[Postgres]:
    """Postgres on this machine, which pods reach as they would reach any server,
    and the Secret with its address."""
    with postgres(site.cluster.host_address()) as server:
        literal = f"--from-literal=url={server.create()}"
        site.cluster.kubectl("create", "secret", "generic", "usage-db", literal)
        yield server
        site.cluster.kubectl("delete", "secret", "usage-db")


def test_tiers_hold_over_two_replicas_and_usage_is_in_postgres(
    site: Site, bot: Front, database: Postgres, tmp_path: Path
) -> None:
    push(
        site.mlflow.uri, "help-desk", tiny_model.make(tmp_path / "model", seed=5), alias="champion"
    )
    spec = {"owner": "somebody@example.com", "deployments": ["help-desk"]}
    tiered = sample("tiered.yaml")
    objects = [*tiered, {**tiered[1], "metadata": {"name": "somebody"}, "spec": spec}]
    apply(site, objects)
    front = Front(site, "help-desk")
    try:
        front.ready()
        assert front.status()["readyReplicas"] == 2
        assert front.condition("UsagePersistent", "help-desk")["status"] == "True"
        site.cluster.kubectl(
            "wait", "llmkey/partner", "llmkey/somebody", "--for=condition=Ready", "--timeout=60s"
        )
        gold = [asked(front, site.key("partner")) for _ in range(20)]
        free_tier = [asked(front, site.key("somebody")) for _ in range(30)]
        assert gold == [200] * 20
        assert free_tier[0] == 200
        assert 429 in free_tier, "10 requests a minute, whichever replica answers"
        served = 20 + free_tier.count(200)
        front.until(lambda: rows(site, database) == served, f"{served} rows of usage", 60)
    finally:
        delete(site, objects)


def asked(front: Front, key: str) -> int:
    """With a connection of its own each time, so that both replicas are asked."""
    body = {
        "model": front.name,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 2,
    }
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{front.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60).status_code


def rows(site: Site, database: Postgres) -> int:
    url = base64.b64decode(site.get("secret", "usage-db")["data"]["url"]).decode()
    name = url.rpartition("/")[2]
    return int(
        database.psql(name, "SELECT count(*) FROM inference_log WHERE completion_tokens > 0")
    )


def test_two_replicas_share_a_volume_of_weights(site: Site, bot: Front, tmp_path: Path) -> None:
    version = push(site.mlflow.uri, "contracts", tiny_model.make(tmp_path / "model", seed=6))
    claim, deployment = sample("pinned-with-cache.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    deployment["spec"]["model"]["mlflow"]["version"] = int(version)
    with volume(site, claim["metadata"]["name"]):
        apply(site, [deployment])
        front = Front(site, "contracts")
        try:
            front.ready()
            assert front.status()["readyReplicas"] == 2
        finally:
            delete(site, [deployment])
