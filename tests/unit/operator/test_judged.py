"""How others read our conditions: kstatus (Flux, Helm, kpt)
and Argo CD, at every point of a roll-out's life.

The life is recorded here and now, by the reconciler against a played cluster;
tests/control_plane/test_judged.py records one on a real API server.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest

from devstack.judges import Verdict, built, judge
from llm_operator import crds
from llm_operator.ports.registry import AliasNotFound, RegistryUnreachable
from llm_operator.reconcile import Pace, Retry, reconcile
from llm_operator.state import Key, Manifest
from unit.operator.fakes import NAMESPACE, World

KEY = Key("LLMDeployment", NAMESPACE, "bot")
TEAM = Key("ApiKey", NAMESPACE, "team")
DOWNLOADING = {
    "initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}],
    "phase": "Pending",
}
REPORT = '{"reason": "ModelCorrupt", "message": "a shard is short"}'
CORRUPT = {"initContainerStatuses": [
    {"name": "fetch", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
     "lastState": {"terminated": {"exitCode": 1, "message": REPORT}}}]}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def judges() -> None:
    """Built before the first test's two seconds begin."""
    built()


class Life:
    """A world whose custom resources are written down at named points."""

    def __init__(self) -> None:
        self.world = World()
        self.points: dict[str, Manifest] = {}

    async def look(self, point: str = "", key: Key = KEY) -> None:
        with suppress(Retry):  # Told in the conditions, too.
            await reconcile(key, self.world.outside, Pace(verify_seconds=60, settle_seconds=5))
        self.note(point, key)

    def note(self, point: str, key: Key = KEY) -> None:
        if point:
            self.points[point] = copy.deepcopy(
                self.world.cluster.objects[key.kind, key.namespace, key.name]
            )

    def candidate(self) -> str:
        return f"bot-{self.world.status()['candidate']['revision']}"

    def pods(self, name: str, **status: Any) -> None:
        """All pods of a Deployment are in this state and not ready."""
        self.world.cluster.play(name, ready=0)
        for (kind, _, pod), found in self.world.cluster.objects.items():
            if kind == "Pod" and pod.startswith(f"{name}-played-"):
                found["status"] = status

    def verdicts(self) -> dict[str, Verdict]:
        return dict(zip(self.points, judge(list(self.points.values())), strict=True))


async def test_the_life_of_a_rollout_reads_the_same_to_everybody() -> None:
    life = Life()
    expected = dict[str, tuple[str, str, str]]()
    world = life.world

    async def look(point: str, kstatus: str, argo: str, ready: str) -> None:
        await life.look(point)
        expected[point] = (kstatus, argo, ready)

    await world.deploy(replicas=2)
    resource = world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]
    resource["status"] = copy.deepcopy(crds.UNSEEN)  # As the API server fills it in.
    life.note("created, and no operator runs")
    expected["created, and no operator runs"] = ("InProgress", "Progressing", "Pending")
    await look("created", "InProgress", "Progressing", "RollingOut")
    life.pods(life.candidate(), **DOWNLOADING)
    await look("downloading", "InProgress", "Progressing", "RollingOut")
    world.cluster.play(life.candidate(), ready=1)
    await look("one pod of two", "InProgress", "Progressing", "RollingOut")
    world.cluster.play(life.candidate())
    await look("served", "Current", "Healthy", "Serving")
    first = f"bot-{world.status()['stable']['revision']}"

    world.registry.aliases["bot"]["champion"] = "2"
    await look("promoted", "InProgress", "Progressing", "RollingOut")
    life.pods(life.candidate(), **CORRUPT)
    await look("the candidate failed", "Failed", "Degraded", "ModelCorrupt")
    world.registry.aliases["bot"]["champion"] = "1"
    await look("the alias is back", "Current", "Healthy", "Serving")

    world.registry.fault = RegistryUnreachable("does not answer")
    await look("the registry is away", "Current", "Healthy", "Serving")
    world.registry.fault = AliasNotFound("no such alias")
    await look("the alias is gone", "Failed", "Degraded", "AliasNotFound")
    world.registry.fault = None

    world.cluster.play(first, ready=0)
    await look("all pods died", "InProgress", "Progressing", "Scaling")
    world.cluster.play(first)
    await look("they are back", "Current", "Healthy", "Serving")

    await world.deploy(replicas=2, suspend=True)
    life.note("suspended, not yet seen")
    await look("suspended", "InProgress", "Suspended", "Suspended")
    await world.deploy(replicas=0)
    await look("scaled to zero", "InProgress", "Suspended", "ScaledToZero")
    await world.deploy(replicas="many")
    await look("a specification that can't be read", "Failed", "Degraded", "InvalidSpec")
    await world.deploy(replicas=2)
    await life.look()
    world.cluster.play(first)
    await look("served again", "Current", "Healthy", "Serving")
    world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"]["deletionTimestamp"] = (
        "2026-01-02T00:00:00Z"
    )
    await look("deleted", "Terminating", "Progressing", "Serving")

    verdicts = life.verdicts()
    unseen = verdicts["suspended, not yet seen"]
    assert (unseen.kstatus, unseen.argo) == ("InProgress", "Progressing")
    read = {
        point: (verdicts[point].kstatus, verdicts[point].argo, _ready(life.points[point]))
        for point in expected
    }
    assert read == expected


async def test_an_api_key_reads_the_same_to_everybody() -> None:
    life = Life()
    world = World()
    life.world = world
    await world.put("ApiKey", "team", {"owner": "a", "deployments": ["bot"]})
    await life.look("the deployment is missing", TEAM)
    await world.deploy()
    await life.look("issued", TEAM)
    await world.put("ApiKey", "team", {"owner": "a", "deployments": ["bot"], "suspended": True})
    await life.look("suspended", TEAM)
    await world.put(
        "ApiKey",
        "team",
        {"owner": "a", "deployments": ["bot"], "expiresAt": "2025-01-01T00:00:00Z"},
    )
    await life.look("expired", TEAM)
    read = {point: (verdict.kstatus, verdict.argo) for point, verdict in life.verdicts().items()}
    assert read == {
        "the deployment is missing": ("InProgress", "Progressing"),
        "issued": ("Current", "Healthy"),
        "suspended": ("InProgress", "Suspended"),
        "expired": ("InProgress", "Suspended"),
    }


def _ready(resource: Manifest) -> str:
    conditions = resource["status"]["conditions"]
    return str(next(each["reason"] for each in conditions if each["type"] == "Ready"))
