"""A version of an adapter that has gates answers clients only when it has passed them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_operator.ports.pods import Answer
from llm_operator.ports.registry import AliasNotFound, RegistryUnreachable
from llm_operator.state import Connection, Figures, Manifest, ModelVersion
from unit.operator.fakes import NAMESPACE
from unit.operator.test_operator_adapters import FRENCH, Following

GATES = [{"smokePrompts": {"configMap": "legal-smoke"}}]
LEGAL = {"name": "legal", "mlflow": {"name": "law", "alias": "champion"}, "gates": GATES}
RIGHT = Answer(200, "Paris")
WRONG = Answer(200, "Rome")


class Gated(Following):
    """One or more pods that load what they are told as soon as it is looked at,
    but what is `broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, str] = {}
        """Reason by the beginning of a name."""
        self.mute: set[str] = set()
        """Pods whose metrics can't be read."""
        self.idle = False
        """The pods load nothing any more."""
        self.prompts("capital: Paris")

    def prompts(self, text: str, config_map: str = "legal-smoke") -> None:
        name, expected = text.split(": ")
        data = {name: f"prompt: The capital?\nexpect: {{exact: {expected}}}"}
        meta = {"name": config_map, "namespace": NAMESPACE}
        self.cluster._store(
            "person", ("ConfigMap", NAMESPACE, config_map), {"metadata": meta, "data": data}
        )

    async def run(self, looks: int = 4) -> None:
        """Looks, and what pods make of them in between."""
        for _ in range(looks):
            await self.look()
            for name in self.cluster.named("Deployment"):
                self.cluster.play(name)
            if not self.idle:
                self.load()

    def load(self) -> None:
        self.pods.known = {
            name: self._figures() for name in self.cluster.named("Pod") if name not in self.mute
        }

    def _figures(self) -> Figures:
        wanted = {each.name: each.version for each in self.delivered().with_candidates}
        failed = {
            name: why
            for name in wanted
            for begin, why in self.broken.items()
            if name.startswith(begin)
        }
        return Figures(
            adapters={n: v for n, v in wanted.items() if n not in failed}, adapter_failures=failed
        )

    def candidates(self) -> dict[str, str]:
        return {each.name.split("@")[0]: each.version for each in self.delivered().candidates}

    def candidate(self) -> Manifest:
        (found,) = self.status()["adapterCandidates"]
        return dict(found)

    def serving(self) -> Any:
        return [(each["name"], each["version"]) for each in self.status().get("adapters", [])]

    def move(self, version: str) -> None:
        self.registry.aliases["law"]["champion"] = version


async def served(replicas: int = 1, **spec: Any) -> Gated:
    """Version 3 answers, and has passed."""
    world = Gated()
    await world.deploy(replicas=replicas, **{"adapters": [LEGAL], **spec})
    await world.run(6)
    assert world.versions()["legal"] == "3"
    assert world.status().get("adapterCandidates", []) == []
    world.pods.asked.clear()
    return world


def asked(world: Gated) -> set[tuple[str, str]]:
    """Pod and model of each prompt."""
    return {(pod, body["model"]) for pod, _, body in world.pods.asked}


async def test_a_version_is_loaded_beside_the_old_one_and_answers_when_it_has_passed_in_every_pod() -> (
    None
):
    world = await served(replicas=2)
    world.move("4")
    world.idle = True
    await world.run(2)
    assert (world.versions(), world.candidates()) == ({"legal": "3"}, {"legal": "4"})
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("Unknown", "AdapterJudged")
    assert "not loaded in pod" in said["message"]
    assert said["message"].endswith("version 3 of law goes on answering")
    assert world.pods.asked == []
    world.idle = False
    await world.run()
    assert (world.versions(), world.candidates()) == ({"legal": "4"}, {})
    (model,) = {model for _, model in asked(world)}
    assert model.startswith("bot:legal@4.")
    assert len(asked(world)) == 2
    assert {key for _, key, _ in world.pods.asked} != {""}
    assert world.status()["adapters"][0]["judged"].startswith(
        "passed: gate smokePrompts legal-smoke is 2 of 2 passed"
    )
    assert world.condition("AdaptersReady")["status"] == "True"
    assert {"AdapterCandidate", "AdapterResolved"} <= set(world.cluster.events())


async def test_a_version_that_is_worse_never_answers_and_is_not_asked_again() -> None:
    world = await served()
    world.pods.answer = WRONG
    world.move("4")
    await world.run()
    assert (world.versions(), world.candidates()) == ({"legal": "3"}, {})
    (gate,) = world.candidate()["gates"]
    assert (world.candidate()["version"], world.candidate()["outcome"], gate["state"]) == (
        "4",
        "Failed",
        "Failed",
    )
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", "AdapterRefused")
    assert "law version 4 was refused by gate smokePrompts legal-smoke" in said["message"]
    assert "version 3 of law goes on answering" in said["message"]
    assert "AdapterRefused" in world.cluster.events()
    assert world.condition("Ready")["status"] == "True"
    world.pods.answer = RIGHT
    world.pods.asked.clear()
    world.restarted("example.com/runtime:1")
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert world.pods.asked == []
    assert await world.poll() == []


async def test_a_pod_that_answers_wrongly_refuses_the_version_for_all_and_is_named() -> None:
    world = await served(replicas=2)
    bad = world.cluster.named("Pod")[1]
    world.pods.answers[bad] = WRONG
    world.move("4")
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert bad in world.candidate()["gates"][0]["message"]


async def test_the_first_version_has_to_pass_too() -> None:
    world = Gated()
    world.pods.answer = WRONG
    await world.deploy(adapters=[LEGAL, FRENCH])
    await world.run(6)
    assert (world.versions(), world.candidates()) == ({"french": "5"}, {})
    assert world.serving() == [("french", "5")]
    assert "no version answers" in world.condition("AdaptersReady")["message"]
    world.pods.answer = RIGHT
    world.move("4")
    await world.run()
    assert world.versions() == {"legal": "4", "french": "5"}


async def test_a_moved_alias_is_judged_anew_and_one_that_comes_back_needs_no_judgement() -> None:
    world = await served()
    world.pods.answer = WRONG
    world.move("4")
    await world.run()
    world.move("3")
    await world.run(2)
    assert world.status().get("adapterCandidates", []) == []
    assert world.condition("AdaptersReady")["status"] == "True"
    world.pods.answer = RIGHT
    world.move("4")
    await world.run()
    assert world.versions() == {"legal": "4"}


async def test_a_refused_version_is_judged_anew_by_other_gates_and_none_let_it_through() -> None:
    world = await served()
    world.pods.answer = WRONG
    world.move("4")
    await world.run()
    other = [*GATES, {"smokePrompts": {"configMap": "more"}}]
    await world.deploy(adapters=[{**LEGAL, "gates": other}])
    world.pods.answer = RIGHT
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert "outcome" not in world.candidate()
    assert "ConfigMap more does not exist: create it" in world.condition("AdaptersReady")["message"]
    await world.deploy(adapters=[{**LEGAL, "gates": []}])
    await world.run(1)
    assert world.versions() == {"legal": "4"}
    assert "judged" not in world.status()["adapters"][0]


async def test_what_is_told_of_gates_with_long_names_has_room_in_the_status() -> None:
    world = Gated()
    names = [f"{letter * 250}" for letter in "abcd"]
    for name in names:
        world.prompts("capital: Paris", name)
    await world.deploy(
        adapters=[{**LEGAL, "gates": [{"smokePrompts": {"configMap": name}} for name in names]}]
    )
    told = []
    for _ in range(6):
        await world.run(1)
        told += [len(each["judged"]) for each in world.status().get("adapters", [])]
    assert told
    assert set(told) == {1024}


async def test_gates_that_are_added_leave_what_answers() -> None:
    world = Gated()
    await world.deploy(adapters=[{**LEGAL, "gates": []}])
    await world.run(4)
    world.pods.answer = WRONG
    await world.deploy(adapters=[LEGAL])
    await world.run(2)
    assert (world.versions(), world.candidates()) == ({"legal": "3"}, {})


async def test_a_version_that_a_pod_cannot_load_waits_and_harms_no_other() -> None:
    world = await served(adapters=[LEGAL, FRENCH])
    world.broken = {"legal@4": "ModelCorrupt"}
    world.move("4")
    await world.run()
    assert (world.versions(), world.candidates()) == ({"legal": "3", "french": "5"}, {"legal": "4"})
    said = world.condition("AdaptersReady")
    assert (said["status"], said["reason"]) == ("False", "ModelCorrupt")
    assert "not loaded in pod" in said["message"]
    assert world.pods.asked == []
    world.broken = {}
    await world.run()
    assert world.versions() == {"legal": "4", "french": "5"}


async def test_it_waits_for_a_pod_whose_metrics_cannot_be_read_and_for_one_that_has_not_read_its_list() -> (
    None
):
    world = await served(replicas=2)
    quiet, late = world.cluster.named("Pod")
    world.mute = {quiet}
    world.pods.answers[late] = Answer(404, "no such model")
    world.move("4")
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert "outcome" not in world.candidate()
    assert (
        f"pod {late} has not answered capital: 404" in world.condition("AdaptersReady")["message"]
    )
    world.pods.answers = {}
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert f"not loaded in pod {quiet}" in world.condition("AdaptersReady")["message"]
    world.mute = set()
    await world.run()
    assert world.versions() == {"legal": "4"}


async def test_another_operator_goes_on_and_a_pod_that_comes_has_to_pass_as_well() -> None:
    world = await served()
    world.pods.answer = Answer(503, "busy")
    world.move("4")
    await world.run()
    world.restarted("example.com/runtime:1")
    await world.deploy(replicas=2, adapters=[LEGAL])
    await world.run()
    new = world.cluster.named("Pod")[1]
    world.pods.answers[new] = WRONG
    world.pods.answer = RIGHT
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert new in world.candidate()["gates"][0]["message"]


@pytest.mark.parametrize("fault", [AliasNotFound("no alias"), RegistryUnreachable("silence")])
async def test_while_nobody_knows_what_the_reference_stands_for_nothing_is_promoted_and_nothing_forgotten(
    fault: Exception,
) -> None:
    world = await served()
    world.pods.answer = Answer(503, "busy")
    world.move("4")
    await world.run()
    world.pods.answer = RIGHT
    world.registry.faults["law"] = fault
    await world.run()
    assert (world.versions(), world.candidates()) == ({"legal": "3"}, {"legal": "4"})
    world.registry.faults = {}
    await world.run()
    assert world.versions() == {"legal": "4"}


async def test_without_pods_it_waits_and_without_the_adapter_nothing_is_left() -> None:
    world = await served()
    await world.deploy(suspend=True, adapters=[LEGAL])
    world.move("4")
    await world.run()
    assert world.versions() == {"legal": "3"}
    assert "no pod is ready" in world.condition("AdaptersReady")["message"]
    await world.deploy(adapters=[])
    await world.run()
    assert world.status().get("adapterCandidates", []) == []
    assert "bot-operator-key" not in world.cluster.named("Secret")


async def test_a_number_that_was_registered_anew_is_another_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await served()
    resolve = world.registry.resolve
    made = "2026-05-01T00:00:00Z"

    async def law(connection: Connection, reference: Any) -> ModelVersion:
        found = await resolve(connection, reference)
        return replace(found, registered_at=made) if reference.name == "law" else found

    monkeypatch.setattr(world.registry, "resolve", law)
    world.pods.answer = WRONG
    world.move("4")
    await world.run()
    assert world.candidate()["outcome"] == "Failed"
    made = "2026-06-01T00:00:00Z"
    world.pods.answer = RIGHT
    await world.run()
    (second,) = world.delivered().adapters
    assert (second.version, second.anew != "") == ("4", True)
    made = "2026-07-01T00:00:00Z"
    world.pods.answer = WRONG
    await world.run()
    assert world.candidate()["outcome"] == "Failed"
    assert world.delivered().adapters == (second,)


async def test_a_model_that_is_rolled_out_does_not_judge_the_adapter() -> None:
    """What its pods answer may be the fault of the new base."""
    world = await served()
    (old,) = world.cluster.named("Deployment")
    await world.deploy(
        adapters=[LEGAL], rollout={"gates": [{"smokePrompts": {"configMap": "absent"}}]}
    )
    world.registry.aliases["bot"]["champion"] = "2"
    await world.run(2)
    (new,) = [name for name in world.cluster.named("Deployment") if name != old]
    world.pods.answers[f"{new}-played-0"] = WRONG
    world.move("4")
    await world.run()
    assert world.versions() == {"legal": "4"}
    assert "candidate" in world.status()
    assert {pod for pod, _ in asked(world)} == {f"{old}-played-0"}


async def test_a_default_adapter_that_has_to_pass_first_is_listed_as_such_and_fails_no_model() -> (
    None
):
    world = Gated()
    world.pods.answer = Answer(503, "the adapter legal has no version yet that may answer")
    await world.deploy(
        adapters=[LEGAL],
        defaultAdapter="legal",
        rollout={"gates": [{"smokePrompts": {"configMap": "legal-smoke"}}]},
    )
    await world.run(6)
    assert (world.delivered().default_adapter, world.versions()) == ("legal", {})
    assert world.status()["candidate"]["gates"][0]["state"] == "Waiting"
    world.pods.answer = RIGHT
    await world.run(6)
    assert world.versions() == {"legal": "3"}
    assert "stable" in world.status()
