"""What the operator remembers: bounded, and gone with what it is about."""

import asyncio

from llm_operator.crds.rollout import LoadProbe
from llm_operator.memory import Bounded, Memory, Written
from llm_operator.plans.evidence.watched import Watched
from llm_operator.state import Key, SmokeOutcome

KEY = Key("LLMDeployment", "ns", "bot")


def test_a_full_memory_drops_the_entry_that_came_first() -> None:
    kept = Bounded[str, int](2)
    kept["a"] = 1
    kept["b"] = 2
    kept["a"] = 3  # Known: nothing has to go.
    assert kept == {"a": 3, "b": 2}
    kept["c"] = 4
    assert kept == {"b": 2, "c": 4}


def test_an_object_that_is_gone_leaves_nothing_and_takes_nothing_of_others() -> None:
    memory = Memory()
    other = Key("LLMDeployment", "ns", "bot-2")
    for key in (KEY, other):
        memory.elsewhere[key] = "another"
        memory.untold.add(key)
        memory.unwell.add(key)
        memory.secrets[key.namespace, f"{key.name}-keys"] = Written("1")
    memory.forget(Key("ApiKey", "ns", "bot-2"))  # It may be called like an LLMDeployment.
    memory.forget(KEY)
    assert memory.elsewhere == {other: "another"}
    assert memory.untold == memory.unwell == {other}
    assert memory.secrets == {("ns", "bot-2-keys"): Written("1")}


async def test_a_roll_out_that_is_over_takes_its_evidence_and_its_prompts_along() -> None:
    memory = Memory()
    for uid in ("mine", "yours"):
        memory.watched[uid] = Watched("r", switched=False)
        memory.smoke[uid, "r", "prompts", "1", "pod/0"] = SmokeOutcome()
        memory.asking[uid, "r", "prompts", "2", "pod/0"] = asyncio.create_task(asyncio.sleep(60))
    prompts = memory.asking["mine", "r", "prompts", "2", "pod/0"]
    memory.end_rollout("mine")
    assert [*memory.watched] == ["yours"]
    assert [known[0] for known in (*memory.smoke, *memory.asking)] == ["yours", "yours"]
    await asyncio.wait({prompts})
    assert prompts.cancelled()
    memory.end_rollout("yours")


async def test_an_llmdeployment_that_is_gone_or_made_anew_takes_what_was_gathered_for_its_gates_along() -> (
    None
):
    memory = Memory()

    def gather(uid: str) -> "asyncio.Task[None]":
        memory.meet(KEY, uid)
        memory.watched[uid] = Watched("r", switched=False)
        memory.evaluating[uid] = frozenset()
        memory.probing[uid, "r", LoadProbe()] = task = asyncio.create_task(asyncio.sleep(60))
        return task

    probes = [gather("first"), gather("made anew")]
    assert [*memory.watched] == ["made anew"]
    memory.forget(KEY)
    assert [*memory.uids, *memory.watched, *memory.evaluating, *memory.probing] == []
    await asyncio.wait(probes)
    assert all(probe.cancelled() for probe in probes)
