"""One question per server and interval wakes exactly the deployments concerned."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from llm_operator import poll as polling
from llm_operator.poll import Poll
from llm_operator.ports.registry import CachedRegistry, RegistryUnreachable
from llm_operator.reconcile import Pace, reconcile
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World


class Noted:
    """Remembers what was to be looked at."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def add(self, item: Key) -> None:
        self.added.append(item.name)


async def polled(world: World, *names: str) -> tuple[Poll, Noted]:
    """A poll over reconciled deployments `names`, each of the model of the same name."""
    for name in names:
        world.registry.aliases.setdefault(name, {"champion": "1"})
        await world.deploy(name, model={"mlflow": {"name": name, "alias": "champion"}})
        await reconcile(Key("LLMDeployment", NAMESPACE, name), world.outside, Pace(60, 5))
    queue = Noted()
    cached = CachedRegistry(world.registry, 30, 5)
    return Poll(world.cluster, cached, world.connections, queue.add, ()), queue


async def test_nothing_moved_wakes_nobody() -> None:
    poll, queue = await polled(World(), "bot", "other")
    await poll.look()
    assert queue.added == []


async def test_a_moved_alias_wakes_its_deployment_only() -> None:
    world = World()
    poll, queue = await polled(world, "bot", "other")
    world.registry.aliases["other"]["champion"] = "2"
    await poll.look()
    assert queue.added == ["other"]


async def test_a_silent_server_is_told_once() -> None:
    world = World()
    poll, queue = await polled(world, "bot")
    world.registry.fault = RegistryUnreachable("down")
    await poll.look()
    assert queue.added == ["bot"]
    await reconcile(Key("LLMDeployment", NAMESPACE, "bot"), world.outside, Pace(60, 5))
    await poll.look()
    assert queue.added == ["bot"]
    world.registry.fault = None
    await poll.look()
    assert queue.added == ["bot", "bot"]


@pytest.mark.parametrize("before", [{}, {"bot": {"other": "1"}}])
@pytest.mark.parametrize("asked", [{"alias": "champion"}, {"version": "1"}])
async def test_what_was_not_there_wakes_its_deployment_when_it_is(
    before: dict[str, Any], asked: dict[str, str]
) -> None:
    world = World()
    world.registry.aliases = before if "alias" in asked else {}
    await world.deploy(model={"mlflow": {"name": "bot", **asked}})
    await reconcile(Key("LLMDeployment", NAMESPACE, "bot"), world.outside, Pace(60, 5))
    poll, queue = await polled(world)
    for _ in range(3):
        await poll.look()
    assert queue.added == []
    world.registry.aliases["bot"] = {"champion": "1"}
    await poll.look()
    assert queue.added == ["bot"]


async def test_a_refused_specification_is_not_looked_at_with_each_round() -> None:
    world = World()
    await world.deploy(pod={"env": [{"name": "PYTHONPATH", "value": "/tmp"}]})
    await reconcile(Key("LLMDeployment", NAMESPACE, "bot"), world.outside, Pace(60, 5))
    poll, queue = await polled(world)
    await poll.look()
    assert queue.added == []


async def rung(poll: Poll, *deliveries: tuple[str, str | None]) -> None:
    """Webhooks come in, and what they set off comes to its end."""
    for connection, model in deliveries:
        poll.wake(connection, model)
    await asyncio.gather(*poll._attended.values())


async def test_a_webhook_has_its_server_looked_at_at_once_and_many_together_twice_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "LOOK_SECONDS", 0.02)
    world = World()
    poll, queue = await polled(world, "bot", "other")
    world.registry.aliases["other"]["champion"] = "2"
    looked = world.registry.summaries
    await rung(poll, *[("default", "other")] * 50)
    assert set(queue.added) == {"other"}
    assert world.registry.summaries - looked == 1
    poll.wake("default", None)
    await asyncio.sleep(0)
    await rung(poll, ("default", None), ("default", "other"))
    assert world.registry.summaries - looked <= 3


async def test_a_webhook_of_a_server_that_nobody_uses_asks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "LOOK_SECONDS", 0.02)
    world = World()
    poll, queue = await polled(world, "bot")
    await rung(poll, ("elsewhere", "bot"))
    assert (queue.added, world.registry.summaries) == ([], 0)


async def test_a_webhook_while_the_api_server_is_away_is_left_to_the_next_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "LOOK_SECONDS", 0.02)
    world = World()
    poll, queue = await polled(world, "bot")
    world.registry.aliases["bot"]["champion"] = "2"
    world.cluster.down = True
    await rung(poll, ("default", "bot"))
    world.cluster.down = False
    await rung(poll, ("default", "bot"))
    assert queue.added == ["bot"]


async def test_a_namespace_that_may_not_be_listed_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    _, queue = await polled(world, "bot")
    world.registry.aliases["bot"]["champion"] = "2"
    world.cluster.forbids = {"gone"}
    cached = CachedRegistry(world.registry, 30, 5)
    await Poll(world.cluster, cached, world.connections, queue.add, ("gone", NAMESPACE)).look()
    assert queue.added == ["bot"]
    assert "polling of namespace gone failed" in caplog.text


async def test_an_odd_object_and_an_odd_server_hold_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    poll, queue = await polled(world, "bot")
    world.registry.aliases["bot"]["champion"] = "2"
    await world.put("LLMDeployment", "nonsense", {"model": "nonsense"})
    await world.put("LLMDeployment", "null", {"model": None, "adapters": [7]})
    broken = world.connections.known["broken"] = ConnectionSettings(tracking_uri="http://broken")
    await world.deploy(
        "other", model={"mlflow": {"name": "other", "alias": "champion", "connection": "broken"}}
    )
    world.registry.breaks = {broken.tracking_uri: TypeError("cadata should be an ASCII string")}
    await poll.look()
    assert queue.added == ["bot"]
    assert "polling connection broken failed: cadata" in caplog.text


async def test_polling_goes_on_whatever_a_round_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    poll, _ = await polled(World(), "bot")
    rounds = itertools.count(1)
    thrice = asyncio.Event()

    async def look(only: str | None = None) -> None:
        if next(rounds) == 3:
            thrice.set()
        raise RuntimeError("odd")

    monkeypatch.setattr(poll, "look", look)
    running = asyncio.create_task(poll.run(0.001))
    await asyncio.wait(
        [running, asyncio.create_task(thrice.wait())], return_when=asyncio.FIRST_COMPLETED
    )
    assert not running.done()
    running.cancel()
