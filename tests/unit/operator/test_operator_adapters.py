"""spec.adapters: resolved like the model,
delivered while pods run, the credentials to one container alone."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from llm_operator.poll import Poll
from llm_operator.ports.registry import AliasNotFound, CachedRegistry, RegistryUnreachable
from llm_operator.reconcile import Done, Pace, reconcile
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Connection, Figures, Key, ModelVersion
from llm_runtime.contract import SCRATCH_MOUNT, AdapterFile
from unit.operator.fakes import NAMESPACE, URI, FakeRegistry, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
BOT = Key("LLMDeployment", NAMESPACE, "bot")
LEGAL = {"name": "legal", "mlflow": {"name": "law", "alias": "champion"}}
PASSWORD = "only for who fetches"
FRENCH = {"name": "french", "mlflow": {"name": "fr", "version": "5", "subPath": "peft"}}


class Elsewhere(FakeRegistry):
    """A registry of which single models can have a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.aliases |= {"law": {"champion": "3"}, "fr": {}}
        self.faults: dict[str, Exception] = {}

    async def resolve(self, connection: Connection, reference: Any) -> ModelVersion:
        if fault := self.faults.get(reference.name):
            raise fault
        return await super().resolve(connection, reference)


class Following(World):
    """A world with two more models, and a pod that has been told about everything so far."""

    def __init__(self) -> None:
        super().__init__()
        self.registry: Elsewhere = Elsewhere()
        self.restarted("example.com/runtime:1")

    async def look(self) -> Done:
        return await reconcile(BOT, self.outside, PACE)

    def delivered(self) -> AdapterFile:
        return AdapterFile.model_validate_json(self.secret("bot-adapters", "adapters.json"))

    def shown(self, pod: dict[str, Any], container: dict[str, Any]) -> set[str]:
        """The files that a container is shown of Secrets."""
        mounted = {each["name"] for each in container["volumeMounts"]}
        found = set[str]()
        for volume in (
            each["secret"]
            for each in pod["volumes"]
            if each["name"] in mounted and "secret" in each
        ):
            data = self.cluster.objects["Secret", NAMESPACE, volume["secretName"]]["data"]
            found |= (
                {each["path"] for each in volume["items"]} if "items" in volume else data.keys()
            )
        return found

    def secret(self, name: str, field: str) -> str:
        return base64.b64decode(
            self.cluster.objects["Secret", NAMESPACE, name]["data"][field]
        ).decode()

    def versions(self) -> dict[str, str]:
        return {adapter.name: adapter.version for adapter in self.delivered().adapters}

    def templates(self) -> list[Any]:
        return [
            self.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"]
            for name in self.cluster.named("Deployment")
        ]

    def pod(self, name: str = "p", loaded: dict[str, str] | None = None, **failed: str) -> None:
        """A ready pod of the candidate or the stable revision, in which these versions answer."""
        status = self.status()
        revision = (status.get("candidate") or status["stable"])["revision"]
        labels = {"llm-operator.dev/deployment": "bot", "llm-operator.dev/revision": revision}
        meta = {"name": name, "namespace": NAMESPACE, "labels": labels}
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": ready}
        self.cluster._store("kubelet", ("Pod", NAMESPACE, name), pod)
        if loaded is not None:
            self.pods.known[name] = Figures(adapters=loaded, adapter_failures=failed)

    async def poll(self) -> list[str]:
        woken: list[Key] = []
        cached = CachedRegistry(self.registry, 30, 5)
        await Poll(self.cluster, cached, self.connections, woken.append, ()).look()
        return [key.name for key in woken]


async def test_adapters_are_resolved_and_delivered_with_what_it_takes_to_fetch_them() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL, FRENCH])
    await world.look()
    legal, french = world.delivered().adapters
    assert (legal.name, legal.model, legal.version, legal.sub_path) == ("legal", "law", "3", "")
    assert (french.name, french.model, french.version, french.sub_path) == (
        "french",
        "fr",
        "5",
        "peft",
    )
    assert world.delivered().connections["default"].tracking_uri == "http://mlflow:5000"
    assert world.condition("AdaptersReady")["reason"] == "NoReadyPods"
    world.pod(loaded={"legal": "3", "french": "5"})
    await world.look()
    assert world.condition("AdaptersReady")["status"] == "True"
    assert (
        world.condition("AdaptersReady")["message"]
        == "legal is law version 3, french is fr version 5"
    )
    assert [(each["name"], each["version"]) for each in world.status()["adapters"]] == [
        ("legal", "3"),
        ("french", "5"),
    ]
    assert "AdapterResolved" in world.cluster.events()


async def test_adapters_added_moved_and_removed_make_no_new_pods() -> None:
    world = Following()
    await world.deploy(adapters=[])
    await world.look()
    before = world.templates()
    await world.deploy(adapters=[LEGAL, FRENCH])
    await world.look()
    world.registry.aliases["law"]["champion"] = "4"
    await world.look()
    assert world.versions() == {"legal": "4", "french": "5"}
    await world.deploy(adapters=[LEGAL])
    await world.look()
    assert world.versions() == {"legal": "4"}
    await world.deploy(adapters=[])
    await world.look()
    assert world.versions() == {}
    assert world.templates() == before
    kinds = [each["type"] for each in world.status()["conditions"]]
    assert "AdaptersReady" not in kinds


async def test_the_first_adapter_rolls_out_pods_with_a_container_that_alone_has_the_credentials(
    tmp_path: Path,
) -> None:
    world = Following()
    (tmp_path / "password").write_text(PASSWORD)
    world.connections.known["default"] = ConnectionSettings(
        tracking_uri=URI, credentials_folder=tmp_path
    )
    await world.deploy()
    await world.look()
    assert ("Secret", NAMESPACE, "bot-adapters") not in world.cluster.objects
    assert [each["name"] for each in world.templates()[0]["spec"]["initContainers"]] == ["fetch"]
    await world.deploy(adapters=[LEGAL])
    await world.look()
    (new,) = (each["spec"] for each in world.templates())
    (fetch, adapters), (serve,) = new["initContainers"], new["containers"]
    assert adapters["restartPolicy"] == "Always"
    assert world.shown(new, adapters) == {"adapters.json", "registries.json"}
    assert world.shown(new, serve) == {"adapters.json", "keys.json"}
    assert PASSWORD in world.secret("bot-adapters", "registries.json")
    for name, field in (
        ("bot-adapters", "adapters.json"),
        ("bot-keys", "adapters.json"),
        ("bot-keys", "keys.json"),
    ):
        assert PASSWORD not in world.secret(name, field)
    # Below HOME, which is the working folder, too, lie code and settings of Python's libraries.
    homes = [
        mount["name"]
        for each in (fetch, adapters, serve)
        for mount in each["volumeMounts"]
        if mount["mountPath"] == SCRATCH_MOUNT
    ]
    assert len(set(homes)) == 3


async def test_the_last_adapter_that_goes_restarts_no_pod_and_its_container_goes_with_the_next_revision() -> (
    None
):
    world = Following()
    await world.deploy(adapters=[LEGAL])
    await world.look()
    before = world.templates()
    await world.deploy()
    await world.look()
    assert world.templates() == before
    assert world.delivered() == AdapterFile()  # Pods that have the container are still there.
    for name in world.cluster.named("Deployment"):
        if (
            len(
                world.cluster.objects["Deployment", NAMESPACE, name]["spec"]["template"]["spec"][
                    "initContainers"
                ]
            )
            > 1
        ):
            for kind in ("Deployment", "ConfigMap"):
                del world.cluster.objects[kind, NAMESPACE, name]
    await world.look()
    await world.look()
    assert ("Secret", NAMESPACE, "bot-adapters") not in world.cluster.objects


async def test_pods_are_nudged_when_an_adapter_moves_and_not_otherwise() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL])
    await world.look()
    labels = {"llm-operator.dev/deployment": "bot"}
    name = world.cluster.named("Deployment")[0]
    labels["llm-operator.dev/revision"] = name.removeprefix("bot-")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": NAMESPACE, "labels": labels},
    }
    await world.cluster.create(pod)

    def nudges() -> int:
        return world.cluster.writes.count(("patch", "Pod", "p"))

    await world.look()
    await world.look()
    assert nudges() == 1
    world.registry.aliases["law"]["champion"] = "4"
    await world.look()
    assert nudges() == 2


async def test_one_that_does_not_exist_is_told_and_holds_up_neither_the_model_nor_others() -> None:
    world = Following()
    await world.deploy(
        adapters=[{"name": "legal", "mlflow": {"name": "typo", "alias": "champion"}}, FRENCH]
    )
    await world.look()
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", "ModelNotFound")
    assert said["message"].startswith("adapter legal is not resolved")
    assert world.versions() == {"french": "5"}
    assert world.condition("ModelResolved")["status"] == "True"
    assert world.condition("Stalled")["status"] == "False"


@pytest.mark.parametrize(
    ("fault", "status"),
    [(AliasNotFound("no alias"), "False"), (RegistryUnreachable("silence"), "Unknown")],
)
async def test_a_version_that_is_in_the_pods_stays_there(fault: Exception, status: str) -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL])
    await world.look()
    world.registry.faults["law"] = fault
    await world.look()
    assert world.versions() == {"legal": "3"}
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == (status, type(fault).__name__)
    assert "its version 3 stays in the pods" in said["message"]


async def test_a_server_that_the_operator_does_not_know_any_more_takes_no_adapter_away() -> None:
    world = Following()
    world.connections.known["second"] = ConnectionSettings(tracking_uri="http://second:5000")
    await world.deploy(
        adapters=[{"name": "legal", "mlflow": {**LEGAL["mlflow"], "connection": "second"}}]
    )  # type: ignore[dict-item]
    await world.look()
    assert list(world.delivered().connections) == ["second"]
    del world.connections.known["second"]
    await world.look()
    assert world.versions() == {"legal": "3"}
    said = world.condition("AdaptersReady")
    assert said["reason"] == "ConnectionUnknown"
    assert "spec.adapters[legal].mlflow.connection" in said["message"]


async def test_the_poll_wakes_for_a_moved_adapter_on_whichever_server() -> None:
    world = Following()
    world.connections.known["second"] = ConnectionSettings(tracking_uri="http://second:5000")
    elsewhere = {
        "name": "poems",
        "mlflow": {"name": "poems", "alias": "champion", "connection": "second"},
    }
    world.registry.aliases["poems"] = {"champion": "1"}
    await world.deploy(adapters=[LEGAL, FRENCH, elsewhere])
    await world.look()
    assert await world.poll() == []
    world.registry.aliases["law"]["champion"] = "4"
    assert "bot" in await world.poll()
    await world.look()
    assert await world.poll() == []
    world.registry.aliases["poems"]["champion"] = "2"
    assert "bot" in await world.poll()


async def test_settled_adapters_write_nothing_and_are_not_asked_for() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL, FRENCH])
    await world.look()
    world.pod(loaded={"legal": "3", "french": "5"})
    for _ in range(2):
        await world.look()
    world.cluster.writes.clear()
    assert (await world.look()).after_seconds != 2
    assert world.cluster.writes == []


def replicas(world: Following) -> list[int]:
    return [each["readyReplicas"] for each in world.status()["adapters"]]


async def test_ready_means_that_the_version_answers_in_every_ready_pod() -> None:
    world = Following()
    await world.deploy(replicas=3, adapters=[LEGAL])
    await world.look()
    for name, version in (("p", "3"), ("q", "3"), ("r", "2")):
        world.pod(name, {"legal": version})
    done = await world.look()
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("Unknown", "AdapterLoading")
    assert (
        said["message"] == "adapter legal: law version 3 answers in 2 of 3 ready pods, not yet in r"
    )
    assert replicas(world) == [2]
    assert done.after_seconds == 2
    world.pod("r", {"legal": "3"})
    await world.look()
    assert world.condition("AdaptersReady")["reason"] == "AdaptersLoaded"
    assert replicas(world) == [3]
    assert "AdaptersLoaded" in world.cluster.events()
    assert "AdapterLoading" not in world.cluster.events()


async def test_a_moved_version_is_awaited_anew() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL])
    await world.look()
    world.pod(loaded={"legal": "3"})
    await world.look()
    before = world.status()["adapters"][0]["resolvedAt"]
    world.clock.pass_seconds(3600)
    world.registry.aliases["law"]["champion"] = "4"
    assert (await world.look()).after_seconds == 2
    said = world.condition("AdaptersReady")["message"]
    assert said == "adapter legal: law version 4 answers in 0 of 1 ready pods, not yet in p"
    assert world.status()["adapters"][0]["resolvedAt"] > before
    world.pod(loaded={"legal": "4"})
    await world.look()
    assert world.condition("AdaptersReady")["status"] == "True"


async def test_a_pod_that_says_nothing_is_named_and_asked_ever_more_rarely() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL])
    await world.look()
    world.pod("mute")
    looks = []
    for _ in range(3):
        looks.append((await world.look()).after_seconds)
        world.clock.pass_seconds(300)
    assert looks == [2, 30, 60]
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("Unknown", "AdapterLoading")
    assert said["message"].endswith(
        "answers in 0 of 1 ready pods, the operator can't read the metrics of mute"
    )


@pytest.mark.parametrize(
    ("told", "reason"), [("ModelCorrupt", "ModelCorrupt"), ("BrandNew", "AdapterFailed")]
)
async def test_a_failure_that_pods_report_is_told_with_their_names(told: str, reason: str) -> None:
    world = Following()
    await world.deploy(replicas=5, adapters=[LEGAL, FRENCH])
    await world.look()
    for name in "pqrst":
        world.pod(name, {"legal": "2", "french": "5"}, legal=told)
    await world.look()
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", reason)
    assert f"law version 3 can't be loaded in p, q, r and 2 more: {told}; " in said["message"]
    assert "kubectl logs p" in said["message"]
    assert said["message"].endswith("version 2 goes on answering there")
    assert replicas(world) == [0, 5]
    assert reason in world.cluster.events()
    assert world.condition("Stalled")["status"] == "False"


async def test_the_poll_leaves_the_registry_alone_while_pods_load() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL])
    await world.look()
    world.pod(loaded={})
    await world.look()
    assert world.condition("AdaptersReady")["reason"] == "AdapterLoading"
    assert await world.poll() == []


async def test_the_default_adapter_travels_with_the_list_and_makes_no_new_pods() -> None:
    world = Following()
    await world.deploy(adapters=[LEGAL, FRENCH])
    await world.look()
    before = world.templates()
    assert world.delivered().default_adapter == ""
    await world.deploy(adapters=[LEGAL, FRENCH], defaultAdapter="french")
    await world.look()
    assert world.delivered().default_adapter == "french"
    assert world.templates() == before
