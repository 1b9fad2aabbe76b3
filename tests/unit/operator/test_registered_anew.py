"""A version is its content, not its number:
a model that is deleted and registered anew begins at 1 again."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from llm_operator.ports.registry import MlflowRegistry, Reference
from llm_operator.state import Connection
from llm_runtime.contract import AdapterFile
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_poll import polled
from unit.operator.test_reconcile_llmdeployment import look, serving

FIRST = "2026-01-01T00:00:00.000+00:00"
SECOND = "2026-01-02T00:00:00.000+00:00"


async def served(made: str = "") -> tuple[World, str]:
    world = World()
    world.registry.registered_at = made
    return world, await serving(world)


@pytest.mark.parametrize("made", ["", FIRST])
async def test_another_model_under_the_same_number_is_rolled_out(made: str) -> None:
    world, old = await served(made)
    world.registry.sources["bot", "1"] = "s3://other/1"
    world.registry.registered_at = SECOND if made else ""
    await look(world)
    new = world.status()["candidate"]["revision"]
    assert new != old
    assert world.status()["candidate"]["version"] == "1"
    assert world.selected() == old, "the pods that serve stay together"
    assert "RegisteredAnew" in world.cluster.events()
    world.cluster.play(f"bot-{new}")
    await look(world)
    assert (world.selected(), world.status()["stable"]["revision"]) == (new, new)
    world.cluster.writes.clear()
    await look(world)
    assert world.status()["stable"]["revision"] == new, "it stays another one"
    assert world.cluster.events().count("RegisteredAnew") == 1


@pytest.mark.parametrize(
    ("cache", "told"), [({"persistentVolumeClaim": {"claimName": "models"}}, True), ({}, False)]
)
async def test_pods_are_told_where_their_volume_may_hold_the_former_content(
    cache: dict[str, Any], told: bool
) -> None:
    world = World()
    world.registry.registered_at = FIRST
    await serving(world, modelCache=cache)
    assert (
        "anew"
        not in world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{stable(world)}"]["data"][
            "config.json"
        ]
    )
    world.registry.registered_at = SECOND
    await look(world)
    revision = world.status()["candidate"]["revision"]
    mark = world.status()["model"]["anew"]
    config = json.loads(
        world.cluster.objects["ConfigMap", NAMESPACE, f"bot-{revision}"]["data"]["config.json"]
    )
    assert config["model"]["mlflow"].get("anew") == (mark if told else None)


def stable(world: World) -> str:
    return str(world.status()["stable"]["revision"])


async def test_artifacts_that_moved_to_another_store_are_the_same_version() -> None:
    world, revision = await served(FIRST)
    world.registry.sources["bot", "1"] = "mlflow-artifacts:/elsewhere/1"
    await look(world)
    assert "candidate" not in world.status()
    assert world.status()["stable"]["revision"] == revision
    assert world.status()["model"]["source"] == "mlflow-artifacts:/elsewhere/1"


async def test_what_an_older_operator_did_not_note_is_no_other_version() -> None:
    world, revision = await served()
    world.registry.registered_at = FIRST
    world.registry.sources["bot", "1"] = "s3://moved/1"
    await look(world)
    assert "candidate" not in world.status()
    assert world.status()["stable"]["revision"] == revision
    assert world.status()["model"]["registeredAt"] == FIRST


async def test_a_model_that_was_registered_anew_is_noticed_by_the_poll() -> None:
    world = World()
    world.registry.registered_at = FIRST
    poll, queue = await polled(world, "bot")
    world.registry.model_made = FIRST
    await poll.look()
    assert queue.added == []
    world.registry.model_made = SECOND
    await poll.look()
    assert queue.added == ["bot"]


async def test_an_adapter_that_was_registered_anew_is_fetched_anew() -> None:
    world = World()
    world.registry.registered_at = FIRST
    await serving(
        world, adapters=[{"name": "legal", "mlflow": {"name": "bot", "alias": "champion"}}]
    )
    first = adapters_file(world)
    world.registry.registered_at = SECOND
    for _ in range(2):  # It stays another one.
        await look(world)
        second = adapters_file(world)
        assert (first.adapters[0].anew, second.adapters[0].version) == ("", "1")
        assert second.adapters[0].anew
        assert world.status()["adapters"][0]["registeredAt"] == SECOND


def adapters_file(world: World) -> AdapterFile:
    text = base64.b64decode(
        world.cluster.objects["Secret", NAMESPACE, "bot-adapters"]["data"]["adapters.json"]
    )
    return AdapterFile.model_validate_json(text)


async def test_mlflow_says_when_a_version_and_its_model_were_made() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        version = {"name": "bot", "version": "3", "creation_timestamp": "1767225600000"}
        model = {"name": "bot", "creation_timestamp": 1767225600000}
        odd = {"name": "odd", "creation_timestamp": "yesterday"}
        return httpx.Response(
            200, text=json.dumps({"model_version": version, "registered_models": [model, odd]})
        )

    registry = MlflowRegistry(httpx.MockTransport(answer))
    connection = Connection("default", "http://mlflow:5000")
    assert (
        await registry.resolve(connection, Reference("bot", alias="champion"))
    ).registered_at == FIRST
    found = await registry.summary(connection)
    assert (found["bot"].registered_at, found["odd"].registered_at) == (FIRST, "")
