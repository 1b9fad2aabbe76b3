"""One odd key, Secret or deployment harms no other;
what an ApiKey says is what the pods were given."""

from __future__ import annotations

import pytest

from llm_operator.ports.cluster import Refused, Unavailable
from llm_operator.reconcile import Pace, Retry, reconcile
from llm_operator.state import Key
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_reconcile_apikey import (
    BOT,
    FILE,
    TEAM,
    issued,
    known,
    look,
    world_with_a_pod,
)

WEBHOOK = Unavailable(
    'Internal error occurred: failed calling webhook "deny.example.com": connection refused'
)


def said(world: World, name: str = "team", kind: str = "Ready") -> tuple[str, str, str]:
    condition = world.condition(kind, name, "ApiKey")
    return condition["status"], condition["reason"], condition["message"]


def names(world: World) -> list[str]:
    return [key["name"].partition("/")[2] for key in known(world)["keys"]]


async def settle(world: World, *keys: Key) -> None:
    """What the queue does: who is woken looks, until nobody is."""
    waiting = list(keys)
    for _ in range(100):
        if not waiting:
            return
        key = waiting.pop(0)
        try:
            done = await reconcile(key, world.outside, Pace(60, 5))
        except Retry as error:
            done = error.done
        waiting += [other for other in done.wake if other not in waiting]
    raise AssertionError(f"still woken: {waiting}")


async def issued_and_known() -> World:
    world = await world_with_a_pod()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await settle(world, TEAM)
    assert said(world)[:2] == ("True", "Issued")
    assert names(world) == ["team"]
    return world


async def test_a_new_key_is_on_its_way_until_the_pods_were_given_it() -> None:
    world = await world_with_a_pod()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    done = await look(world)
    assert said(world)[:2] == ("Unknown", "Delivering")
    assert FILE in done.wake
    assert TEAM in (await look(world, FILE)).wake
    await look(world)
    assert said(world)[:2] == ("True", "Issued")
    assert TEAM not in (await look(world, FILE)).wake


@pytest.mark.parametrize(
    "expires", ["0000-01-01T00:00:00Z", "2027-01-01T00:00:00+25:00", "some day"]
)
async def test_an_apikey_that_cannot_be_read_is_told_on_it_and_opens_nothing(expires: str) -> None:
    world = await issued_and_known()
    await world.put("ApiKey", "other", {"deployments": ["bot"]})
    await settle(world, Key("ApiKey", NAMESPACE, "other"))
    await world.put("ApiKey", "other", {"deployments": ["bot"], "expiresAt": expires})
    await settle(world, Key("ApiKey", NAMESPACE, "other"))
    assert said(world, "other")[:2] == ("False", "InvalidSpec")
    assert said(world, "other", "Stalled")[:2] == ("True", "InvalidSpec")
    assert "spec.expiresAt" in said(world, "other")[2]
    assert world.cluster.events().count("InvalidSpec") == 1
    assert names(world) == ["team"]
    del world.cluster.objects["ApiKey", NAMESPACE, "team"]
    await settle(world, TEAM)
    assert names(world) == []
    assert world.condition("Ready")["reason"] != "InvalidSpec"


async def test_a_suspended_key_is_not_said_to_be_refused_before_the_pods_know() -> None:
    world = await issued_and_known()
    world.cluster.faults = {("apply", "Secret", "bot-keys"): WEBHOOK}
    await world.put("ApiKey", "team", {"deployments": ["bot"], "suspended": True})
    await settle(world, TEAM)
    status, reason, message = said(world)
    assert (status, reason) == ("False", "Delivering")
    assert "LLMDeployment bot know the key as it was before" in message
    assert "failed calling webhook" in message
    assert said(world, kind="Reconciling")[0] == "True"
    assert "Delivering" in world.cluster.events()
    world.cluster.faults = {}
    await settle(world, FILE)
    assert known(world)["keys"][0]["suspended"]
    assert said(world)[:2] == ("False", "Suspended")


async def test_a_deployment_that_a_key_opens_no_longer_is_named_until_its_pods_know() -> None:
    world = await issued_and_known()
    world.cluster.faults = {("apply", "Secret", "bot-keys"): Refused("exceeded quota")}
    await world.deploy("other")
    await world.put("ApiKey", "team", {"deployments": ["other"]})
    await settle(world, TEAM)
    assert world.status("team", "ApiKey")["deployments"] == ["bot", "other"]
    assert said(world)[:2] == ("False", "Delivering")
    world.restarted("image")
    await settle(world, TEAM)
    assert world.status("team", "ApiKey")["deployments"] == ["bot", "other"], "also after a restart"
    world.cluster.faults = {}
    await settle(world, FILE)
    assert world.status("team", "ApiKey")["deployments"] == ["other"]
    assert said(world)[0] == "True"


async def test_a_key_whose_secret_cannot_be_read_stays_and_stops_no_other() -> None:
    world = await issued_and_known()
    await world.put("ApiKey", "gone", {"deployments": ["bot"]})
    await settle(world, Key("ApiKey", NAMESPACE, "gone"))
    before = known(world)["keys"]
    world.restarted("image")
    world.cluster.faults = {("get", "Secret", "team-llm-key"): WEBHOOK}
    del world.cluster.objects["ApiKey", NAMESPACE, "gone"]
    await look(world, FILE)
    assert known(world)["keys"] == [key for key in before if key["name"] == f"{NAMESPACE}/team"]
    await world.put("ApiKey", "team", {"deployments": ["bot"], "suspended": True})
    await look(world, FILE)
    assert known(world)["keys"][0]["suspended"]


@pytest.mark.parametrize("asked", [("list", "Pod"), ("patch", "Pod")])
async def test_pods_that_cannot_be_told_hold_up_no_revocation(asked: tuple[str, ...]) -> None:
    world = await issued_and_known()
    world.cluster.faults = {asked: WEBHOOK}
    del world.cluster.objects["ApiKey", NAMESPACE, "team"]
    try:
        await look(world, FILE)
    except Unavailable:
        assert asked == ("list", "Pod")
    assert known(world)["keys"] == []
    before = world.cluster.objects["Pod", NAMESPACE, "pod"]["metadata"]["annotations"]
    world.cluster.faults = {}
    await look(world, FILE)
    assert world.cluster.objects["Pod", NAMESPACE, "pod"]["metadata"]["annotations"] != before, (
        "told once they can be"
    )


async def test_a_key_file_and_a_specification_that_cannot_be_read_hold_up_no_revocation() -> None:
    world = await issued_and_known()
    await world.put("LLMDeployment", "bot", {"model": "nonsense", "access": 7})
    await world.cluster.patch(
        "Secret", NAMESPACE, "bot-keys", {"data": {"keys.json": "bm9uc2Vuc2U="}}
    )
    await world.put("ApiKey", "team", {"deployments": ["bot"], "suspended": True})
    await look(world, FILE)
    assert known(world)["keys"][0]["suspended"]
    assert "adapters.json" in world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"]


async def test_a_status_that_cannot_be_read_takes_no_key_away() -> None:
    world = await issued_and_known()
    key = world.cluster.objects["ApiKey", NAMESPACE, "team"]
    key["status"] = {**key["status"], "conditions": "many", "issuedAt": 7}
    await look(world, FILE)
    assert names(world) == ["team"]
    await settle(world, TEAM)
    assert said(world)[:2] == ("True", "Issued")


async def test_a_key_whose_secret_is_refused_is_told_with_the_words_of_the_api_server() -> None:
    world = World()
    await world.deploy()
    world.cluster.refuses = {"Secret"}
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    with pytest.raises(Retry):
        await look(world)
    assert said(world)[:2] == ("False", "ApplyFailed")
    assert "exceeded quota" in said(world)[2]
    assert "ApplyFailed" in world.cluster.events()
    world.cluster.refuses = set()
    await look(world)
    assert issued(world).startswith("llmk_")
    assert said(world)[0] == "True"


async def test_keys_for_which_the_file_has_no_room_are_told_and_revocations_go_first() -> None:
    world = await issued_and_known()
    many = {
        "deployments": ["bot"],
        "adapters": [f"{n:03}" + "a" * 60 for n in range(256)],
        "owner": "o" * 256,
    }
    everyone = [Key("ApiKey", NAMESPACE, f"k{n:02}") for n in range(70)]
    for key in everyone:
        world.clock.pass_seconds(1)
        await world.put("ApiKey", key.name, many)
        await look(world, key)
    await settle(world, FILE)
    size = sum(
        len(text) * 3 / 4
        for text in world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"].values()
    )
    assert size < 1 << 20
    out = [key for key in everyone if key.name not in names(world)]
    assert 0 < len(out) < 20
    assert {said(world, key.name)[:2] for key in out} == {("False", "KeyFileFull")}
    assert "has no room for this key" in said(world, out[0].name)[2]
    assert names(world)[-1] == "team", "who was there first stays"
    assert {said(world, key.name)[0] for key in everyone if key not in out} == {"True"}
    await world.put("ApiKey", "k00", {**many, "suspended": True})
    await settle(world, everyone[0])
    assert "k00" not in names(world)
    assert said(world, "k00")[:2] == ("False", "Suspended")
    assert out[0].name in names(world), "one that works has its place"
    assert said(world, out[0].name)[:2] == ("True", "Issued")


async def test_an_api_server_that_fails_for_one_key_says_so_on_it() -> None:
    world = await issued_and_known()
    world.cluster.faults = {("get", "Secret", "team-llm-key"): WEBHOOK}
    for _ in range(2):
        with pytest.raises(Unavailable):
            await look(world)
    assert said(world)[:2] == ("Unknown", "NotObserved")
    assert "failed calling webhook" in said(world)[2]
    world.cluster.faults = {}
    await look(world)
    assert said(world)[0] == "True"


async def test_a_deployments_own_look_also_tells_the_keys_what_its_pods_were_given() -> None:
    world = await world_with_a_pod()
    await world.put("ApiKey", "team", {"deployments": ["bot"]})
    await look(world)
    assert TEAM in (await look(world, BOT)).wake
