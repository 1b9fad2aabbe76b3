"""What the watches have shown is as good as asking, and where it is not, the API server is asked."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_operator import watch
from llm_operator.hearing import Hearing
from llm_operator.mirror import Mirror, Place, Sighting
from llm_operator.plans.names import DEPLOYMENT_LABEL, MANAGED_SELECTOR
from llm_operator.ports.cluster import Unanswered
from llm_operator.ports.mirrored import MirroredCluster
from llm_operator.reconcile import Pace, reconcile
from llm_operator.state import Key, Manifest
from unit.operator.api_server import serving
from unit.operator.fakes import IMAGE, NAMESPACE, FakeCluster, World
from unit.operator.test_reaching import write_kubeconfig
from waiting import until

PODS = Place("Pod", "team")
MANAGED = dict([MANAGED_SELECTOR.split("=")])


def pod(name: str, version: int, *, of: str = "bot", uid: str = "", **more: Any) -> Manifest:
    meta = {
        "name": name,
        "namespace": "team",
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
        "labels": {**MANAGED, DEPLOYMENT_LABEL: of},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, **more}


def sighting(*args: Any, **more: Any) -> Sighting:
    return Sighting.of(pod(*args, **more))


@pytest.fixture
def mirror() -> Mirror:
    """One that has read an empty list."""
    made = Mirror(lambda kind, namespace: True)
    listed(made)
    return made


def listed(mirror: Mirror, *items: Sighting) -> list[Sighting]:
    mirror.begin(PODS)
    return mirror.page(PODS, items, last=True)


def names(mirror: Mirror, deployment: str | None = "bot") -> list[str] | None:
    found = mirror.select("Pod", "team", deployment)
    return None if found is None else sorted(each["metadata"]["name"] for each in found)


def test_before_the_list_is_whole_nothing_is_known() -> None:
    mirror = Mirror(lambda kind, namespace: True)
    mirror.begin(PODS)
    mirror.see(sighting("a", 3))
    assert mirror.page(PODS, [sighting("b", 2)], last=False) == []
    assert names(mirror) is None
    assert mirror.find("Pod", "team", "a") is None
    assert mirror.page(PODS, [sighting("c", 2)], last=True) == []
    assert names(mirror) == ["a", "b", "c"]


def test_while_the_stream_is_closed_nothing_is_known() -> None:
    opened = {"now": True}
    mirror = Mirror(lambda kind, namespace: opened["now"])
    listed(mirror, sighting("a", 2))
    assert names(mirror) == ["a"]
    opened["now"] = False
    assert names(mirror) is None
    assert mirror.find("Pod", "team", "a") is None


def test_what_is_older_than_what_is_known_changes_nothing(mirror: Mirror) -> None:
    mirror.see(sighting("a", 5, status="new"))
    mirror.see(sighting("a", 4, status="old"))
    found = mirror.find("Pod", "team", "a")
    assert found is not None
    assert found["status"] == "new"
    mirror.lose(sighting("a", 3))
    assert names(mirror) == ["a"], "one of that name was deleted before it"
    mirror.lose(sighting("a", 6))
    assert names(mirror) == []


def test_the_answer_to_a_write_that_comes_after_the_deletion_brings_nothing_back(
    mirror: Mirror,
) -> None:
    mirror.see(sighting("a", 5))
    mirror.lose(sighting("a", 7))
    mirror.see(sighting("a", 6, status="our write"))
    assert names(mirror) == []
    assert mirror.find("Pod", "team", "a") is None
    listed(mirror, sighting("a", 6))
    assert names(mirror) == [], "a list of before"
    mirror.see(sighting("a", 9, uid="another"))
    assert names(mirror) == ["a"]


def test_few_of_those_that_are_gone_are_remembered(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_operator.mirror.GRAVES", 2)
    for name in ("a", "b", "c"):
        mirror.see(sighting(name, 5))
        mirror.lose(sighting(name, 7))
    for name in ("a", "b", "c"):
        mirror.see(sighting(name, 6))
    assert names(mirror) == ["a"]


def test_a_label_that_changes_moves_the_object(mirror: Mirror) -> None:
    mirror.see(sighting("a", 5))
    mirror.see(sighting("a", 6, of="other"))
    assert (names(mirror), names(mirror, "other"), names(mirror, None)) == ([], ["a"], ["a"])


def test_no_reader_changes_what_another_one_reads(mirror: Mirror) -> None:
    mirror.see(sighting("a", 5))
    found = mirror.find("Pod", "team", "a")
    assert found is not None
    found["metadata"]["name"] = "spoilt"
    assert names(mirror) == ["a"]


def test_what_we_have_deleted_is_asked_for_until_the_watch_tells_of_it(mirror: Mirror) -> None:
    mirror.see(sighting("a", 5))
    mirror.doubt("Pod", "team", "a")
    assert names(mirror) is None
    assert mirror.find("Pod", "team", "a") is None
    mirror.see(sighting("a", 5))
    assert names(mirror) is None, "the event of before"
    mirror.see(sighting("a", 6, deletionTimestamp="now"))
    assert names(mirror) == ["a"], "a finalizer keeps it"
    mirror.doubt("Pod", "team", "a")
    mirror.lose(sighting("a", 7))
    assert names(mirror) == []


def test_what_vanished_while_nobody_watched_is_told_and_what_came_meanwhile_stays(
    mirror: Mirror,
) -> None:
    for name, version in (("gone", 5), ("stays", 6), ("replaced", 7)):
        mirror.see(sighting(name, version))
    mirror.begin(PODS)
    mirror.see(sighting("new", 12))
    mirror.see(sighting("stays", 11, status="newer than the list"))
    items = [sighting("stays", 6), sighting("replaced", 9, uid="another")]
    assert [each.name for each in mirror.page(PODS, items, last=True)] == ["gone"]
    assert names(mirror) == ["new", "replaced", "stays"]
    found = mirror.find("Pod", "team", "stays")
    assert found is not None
    assert found["status"] == "newer than the list"


def test_a_list_of_a_restored_cluster_counts_though_its_versions_are_lower(mirror: Mirror) -> None:
    mirror.see(sighting("a", 500, status="before the restore"))
    listed(mirror, sighting("a", 20, status="restored"))
    found = mirror.find("Pod", "team", "a")
    assert found is not None
    assert found["status"] == "restored"


def test_one_list_of_all_namespaces_tells_of_each() -> None:
    mirror = Mirror(lambda kind, namespace: namespace == "")
    mirror.begin(Place("Pod", ""))
    mirror.page(Place("Pod", ""), [sighting("a", 5)], last=True)
    assert names(mirror) == ["a"]
    assert mirror.select("Pod", "elsewhere", None) == []
    assert len(mirror.select("Pod", "", None) or ()) == 1
    only_team = Mirror(lambda kind, namespace: namespace == "team")
    listed(only_team, sighting("a", 5))
    assert names(only_team) == ["a"]
    assert only_team.select("Pod", "", None) is None


def test_each_version_of_an_object_is_read_once(mirror: Mirror) -> None:
    read: list[str] = []

    def reader(found: Manifest) -> str:
        read.append(found["metadata"]["resourceVersion"])
        return read[-1]

    assert mirror.read("Pod", "team", reader) == []
    mirror.see(sighting("a", 5))
    for _ in range(2):
        assert mirror.read("Pod", "team", reader) == ["5"]
    mirror.see(sighting("a", 6))
    assert mirror.read("Pod", "team", reader) == ["6"]
    assert read == ["5", "6"]
    mirror.doubt("Pod", "team", "a")
    assert mirror.read("Pod", "team", reader) is None


async def test_a_mirrored_cluster_says_what_the_cluster_says() -> None:
    """Random writes of ours and of others, whose events come late and in order."""
    chance = random.Random(1)
    cluster = FakeCluster()
    mirror = Mirror(lambda kind, namespace: True)
    mirrored = MirroredCluster(cluster, mirror, (), ("Pod",))
    listed(mirror)
    events: list[tuple[bool, Sighting]] = []
    labels = f"{DEPLOYMENT_LABEL}=bot"
    for step in range(2000):
        name = chance.choice("abcdef")
        before = cluster.objects.get(("Pod", "team", name))
        match chance.choice(["ours", "theirs", "ours deletes", "theirs deletes", "hear", "hear"]):
            case "ours":
                await mirrored.apply(change(name, step))
                events.append((False, Sighting.of(cluster.objects["Pod", "team", name])))
            case "theirs":
                await cluster.apply(change(name, step))
                events.append((False, Sighting.of(cluster.objects["Pod", "team", name])))
            case "ours deletes" | "theirs deletes" as who if before is not None:
                who_deletes = mirrored if who == "ours deletes" else cluster
                await who_deletes.delete("Pod", "team", name, before["metadata"]["uid"])
                last = {**before["metadata"], "resourceVersion": cluster._next()}
                events.append((True, Sighting.of({**before, "metadata": last})))
            case "hear" if events:
                gone, seen = events.pop(0)
                (mirror.lose if gone else mirror.see)(seen)
        if not events:
            assert key(await mirrored.list("Pod", "team", labels)) == key(
                await cluster.list("Pod", "team", labels)
            )
    assert cluster.writes


def change(name: str, step: int) -> Manifest:
    meta = {"name": name, "namespace": "team", "labels": {**MANAGED, DEPLOYMENT_LABEL: "bot"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"step": step}}


def key(found: list[Manifest]) -> list[tuple[str, str]]:
    return sorted((each["metadata"]["uid"], each["metadata"]["resourceVersion"]) for each in found)


async def test_our_own_writes_are_seen_before_their_events() -> None:
    cluster = FakeCluster()
    mirror = Mirror(lambda kind, namespace: True)
    mirrored = MirroredCluster(cluster, mirror, (), ("Pod",))
    listed(mirror)
    await mirrored.create(change("a", 1))
    assert names(mirror) == ["a"]
    await mirrored.patch("Pod", "team", "a", {"spec": {"step": 2}})
    found = await mirrored.seen("Pod", "team", "a")
    assert found is not None
    assert found["spec"]["step"] == 2
    cluster.faults["delete", "Pod"] = Unanswered("no answer")
    with pytest.raises(Unanswered):
        await mirrored.delete("Pod", "team", "a")
    assert names(mirror) is None, "it may have been deleted"


async def test_a_watch_whose_past_was_forgotten_tells_what_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Key] = []
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    async with serving() as server:
        write_kubeconfig(tmp_path / "config", server.url, monkeypatch)
        server.items["pods"] = [pod("a", 5), pod("b", 6, of="other")]
        hearing = Hearing(watch.WATCHED)
        mirror = Mirror(hearing.open)
        task = asyncio.ensure_future(watch.watch(added.append, (), "candidate", hearing, mirror))
        try:
            await until(lambda: names(mirror, None) == ["a", "b"])
            await until(lambda: Key("LLMDeployment", "team", "other") in added)
            added.clear()
            server.items["pods"] = [pod("a", 5)]
            server.expired["pods"].set()
            await until(lambda: names(mirror, None) == ["a"])
            assert Key("LLMDeployment", "team", "other") in added
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Counting(FakeCluster):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, ...]] = []

    def _answer(self, kind: str = "", *asked: str) -> None:
        self.asked.append(asked)
        super()._answer(kind, *asked)

    def reads(self) -> list[tuple[str, ...]]:
        found = [each for each in self.asked if each[0] in ("get", "list")]
        self.asked.clear()
        return found


async def test_looks_ask_for_next_to_nothing() -> None:
    """With 300 deployments of one key each it was 57 reads for each of them until all were ready."""
    world = World()
    cluster = world.cluster = Counting()
    mirror = Mirror(lambda kind, namespace: True)
    mirrored = MirroredCluster(cluster, mirror, watch.OWN, watch.CHILDREN)
    world.outside = replace(world.restarted(IMAGE), cluster=mirrored)
    bot = Key("LLMDeployment", NAMESPACE, "bot")
    team = Key("ApiKey", NAMESPACE, "team")

    async def look(key: Key) -> list[tuple[str, ...]]:
        for kind in watch.WATCHED:
            mirror.begin(Place(kind, ""))
            items = [found for (of, _, _), found in cluster.objects.items() if of == kind]
            mirror.page(Place(kind, ""), map(Sighting.of, items), last=True)
        cluster.reads()
        await reconcile(key, world.outside, Pace(60, 5))
        return cluster.reads()

    await world.deploy()
    await world.put("ApiKey", "team", {"owner": "o", "deployments": ["bot"]})
    await look(team)
    used = {"bot", "bot-keys", "bot-registry", *cluster.named("ConfigMap"), "team-llm-key"}
    first = await look(bot)
    used |= set(cluster.named("ConfigMap"))
    assert {name for _, _, name in first} == used, "what new pods use, and the key"
    assert len(first) == len(used)
    (deployment,) = cluster.named("Deployment")
    cluster.play(deployment)
    for _ in range(3):
        assert await look(bot) == []
        assert await look(team) == [("get", "Secret", "team-llm-key")]
    assert world.condition("Ready")["status"] == "True"
