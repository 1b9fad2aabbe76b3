"""Tiers, limits of keys, and the database:
what reaches the pods, by which way, and what is told."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from llm_operator.crds import LLMDeploymentSpec
from llm_operator.plans.objects.revision import revision_id
from llm_operator.reconcile import Done, Pace, reconcile
from llm_operator.state import Key, ModelVersion
from llm_runtime.contract import KeyFile
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
TEAM = Key("ApiKey", NAMESPACE, "team")
BOT = Key("LLMDeployment", NAMESPACE, "bot")
FREE = {"name": "free", "requestsPerMinute": 10, "maxConcurrent": 1}
MODEL = {"mlflow": {"name": "bot", "alias": "champion"}}


async def look(world: World, key: Key = BOT) -> Done:
    return await reconcile(key, world.outside, PACE)


def key_file(world: World) -> KeyFile:
    data = world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"]["keys.json"]
    return KeyFile.model_validate_json(base64.b64decode(data))


def revision(**spec: Any) -> str:
    return revision_id(
        LLMDeploymentSpec.model_validate({"model": MODEL, **spec}), ModelVersion("bot", "1")
    )


def serving_environment(world: World) -> dict[str, Any]:
    (name,) = world.cluster.named("Deployment")
    pod = world.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"]["spec"]
    return {
        entry["name"]: entry.get("value") or entry["valueFrom"]
        for entry in pod["containers"][0]["env"]
    }


async def test_changed_tiers_reach_the_pods_that_run_and_make_no_new_ones() -> None:
    world = World()
    await world.deploy()
    await look(world)
    before = world.status()["candidate"]["revision"]
    await world.deploy(access={"defaultTier": "free", "tiers": [FREE]})
    await look(world)
    file = key_file(world)
    assert (file.default_tier, [tier.requests_per_minute for tier in file.tiers]) == ("free", [10])
    assert world.status()["candidate"]["revision"] == before
    config = json.loads(
        world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{before}"]["data"]["config.json"]
    )
    assert config["tiers"] == []


def test_what_the_pods_read_at_their_start_makes_a_revision() -> None:
    plain = revision()
    assert revision(access={"tiers": [FREE], "defaultTier": "free"}) == plain
    assert revision(database={}, server={"filters": {}}) == plain
    changed = [
        revision(database={"secretRef": {"name": "db", "key": "url"}}),
        revision(database={"retentionDays": 7}),
        revision(server={"filters": {"pii": "Mask"}}),
        revision(server={"sessions": {"ttlSeconds": 60}}),
        revision(access={"authentication": "Disabled"}),
    ]
    assert len({plain, *changed}) == 6


async def test_a_keys_tier_limits_and_adapters_are_in_its_record() -> None:
    world = World()
    await world.deploy(access={"tiers": [FREE]})
    limits = {"tokensPerMonth": 5000, "priority": 7}
    await world.put(
        "ApiKey",
        "team",
        {"deployments": ["bot"], "tier": "free", "limits": limits, "adapters": ["legal"]},
    )
    await look(world, TEAM)
    await look(world)
    (record,) = key_file(world).keys
    assert (record.tier, record.limits.tokens_per_month, record.limits.priority) == (
        "free",
        5000,
        7,
    )
    assert record.limits.max_concurrent is None
    assert record.adapters == ("legal",)
    assert world.condition("Ready", "team", "ApiKey")["status"] == "True"


async def test_a_tier_that_no_deployment_has_is_told_on_the_key_until_it_is_written() -> None:
    world = World()
    await world.deploy()
    await world.put("ApiKey", "team", {"deployments": ["bot"], "tier": "free"})
    await look(world, TEAM)
    told = world.condition("Ready", "team", "ApiKey")
    assert (told["status"], told["reason"]) == ("False", "TierUnknown")
    assert "bot has no tier free" in told["message"]
    assert "use standard" in told["message"]
    await world.deploy(access={"tiers": [FREE]})
    assert TEAM in (await look(world)).wake
    await look(world, TEAM)
    assert world.condition("Ready", "team", "ApiKey")["status"] == "True"
    assert TEAM not in (await look(world)).wake


async def test_a_tier_that_is_taken_away_is_told_on_the_keys_that_name_it() -> None:
    world = World()
    await world.deploy(access={"tiers": [FREE]})
    await world.put("ApiKey", "team", {"deployments": ["bot"], "tier": "free"})
    await look(world, TEAM)
    await look(world)
    await world.deploy(access={"tiers": []})
    assert TEAM in (await look(world)).wake
    await look(world, TEAM)
    assert world.condition("Ready", "team", "ApiKey")["reason"] == "TierUnknown"


async def test_without_a_database_usage_is_in_the_pod_and_a_condition_says_so() -> None:
    world = World()
    await world.deploy(replicas=2)
    await look(world)
    told = world.condition("UsagePersistent")
    assert (told["status"], told["reason"]) == ("False", "NoDatabase")
    assert "spec.database.secretRef {name, key}" in told["message"]
    assert "each pod counts limits for itself" in told["message"]
    assert serving_environment(world)["DATABASE_URL"] == "sqlite:////tmp/llm-runtime.db"
    assert "NoDatabase" not in world.cluster.events()


async def test_the_databases_secret_is_named_in_the_pod_and_its_absence_in_a_condition() -> None:
    world = World()
    references = {
        "secretRef": {"name": "db", "key": "url"},
        "redisSecretRef": {"name": "valkey", "key": "url"},
    }
    await world.deploy(database=references)
    done = await look(world)
    environment = serving_environment(world)
    assert environment["DATABASE_URL"] == {"secretKeyRef": {"name": "db", "key": "url"}}
    assert environment["REDIS_URL"] == {"secretKeyRef": {"name": "valkey", "key": "url"}}
    told = world.condition("UsagePersistent")
    assert (told["status"], told["reason"]) == ("False", "DatabaseSecretMissing")
    assert told["message"].startswith("Secret db does not exist")
    assert "DatabaseSecretMissing" in world.cluster.events()
    assert done.after_seconds is not None
    assert done.after_seconds <= PACE.verify_seconds


async def test_a_secret_without_the_named_key_is_told_and_a_whole_one_settles_it() -> None:
    world = World()
    await world.deploy(database={"secretRef": {"name": "db", "key": "url"}})
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "db", "namespace": NAMESPACE},
    }
    await world.cluster.create({**secret, "data": {"address": "eA=="}})
    await look(world)
    address = "postgresql://USER:PASSWORD@HOST/DATABASE"
    patch = (
        f"""kubectl -n {NAMESPACE} patch secret db -p '{{"stringData": {{"url": "{address}"}}}}'"""
    )
    told = f"Secret db has no key url; new pods wait for it: {patch}"
    assert world.condition("UsagePersistent")["message"] == told
    await world.cluster.apply(
        {**secret, "data": {"url": base64.b64encode(b"postgresql://a:b@c/d").decode()}}
    )
    await look(world)
    assert world.condition("UsagePersistent")["reason"] == "DatabaseConfigured"
    assert "a:b@c" not in json.dumps(world.status())


async def test_usage_that_is_not_kept_makes_no_deployment_unready() -> None:
    world = World()
    await world.deploy()
    await look(world)
    (name,) = world.cluster.named("Deployment")
    world.cluster.play(name)
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("UsagePersistent")["status"] == "False"


def test_a_pattern_that_is_no_regular_expression_is_told_before_a_pod_starts() -> None:
    filters = {"patterns": [{"name": "TICKET", "regex": "T-[0-9"}]}
    with pytest.raises(ValidationError, match="not a regular expression of Python"):
        LLMDeploymentSpec.model_validate({"model": MODEL, "server": {"filters": filters}})
