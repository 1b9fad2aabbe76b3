"""Gates as pure functions, the smoke prompts' own rules, and gathering what gates are judged by."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import pytest

from llm_operator.confined import smoke
from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec
from llm_operator.memory import PODS_AT_ONCE
from llm_operator.plans.evidence import gates
from llm_operator.ports.cluster import Unavailable
from llm_operator.ports.pods import Answer
from llm_operator.ports.prometheus import HttpPrometheus
from llm_operator.reconcile import Pace, reconcile
from llm_operator.reconcile import smoke as smoke_prompts
from llm_operator.state import Evidence, Figures, Key, Manifest, Measured, SmokeOutcome
from unit.operator.fakes import NAMESPACE, World

PACE = Pace(verify_seconds=60, settle_seconds=5)
KEY = Key("LLMDeployment", NAMESPACE, "bot")


def gate(**fields: Any) -> GateSpec:
    return GateSpec.model_validate(fields)


def slow(seconds: float, samples: int = 100) -> dict[float, float]:
    return {b: float(samples if b >= seconds else 0) for b in (0.1, 0.2, 0.4, 0.8, math.inf)}


def state(spec: GateSpec, **evidence: Any) -> str:
    return gates.judge([spec], Evidence(**evidence))[0].state


def test_a_gate_says_figure_interval_and_threshold() -> None:
    fields = {
        "name": "maxErrorRate",
        "state": "Failed",
        "estimate": "0.03",
        "low": "0.011",
        "high": "0.06",
    }
    failed = GateVerdict.model_validate(
        {**fields, "threshold": "0.01", "message": "6 of 200 answers were errors"}
    )
    assert (
        gates.describe(failed)
        == "gate maxErrorRate is 0.03 (between 0.011 and 0.06), allowed is 0.01: 6 of 200 answers"
        " were errors"
    )
    assert gates.failed([failed]) == failed


@pytest.mark.parametrize(
    ("ends", "said"), [({"low": "6"}, "above 6"), ({"high": "0.4"}, "below 0.4")]
)
def test_a_gate_without_a_figure_says_on_which_side_of_the_threshold_it_is(
    ends: dict[str, str], said: str
) -> None:
    verdict = GateVerdict.model_validate(
        {"name": "maxInterTokenP95Ratio", "state": "Failed", "threshold": "1.5", **ends}
    )
    assert gates.describe(verdict) == f"gate maxInterTokenP95Ratio is {said}, allowed is 1.5"


def test_a_query_without_samples_is_not_judged_and_one_without_an_answer_is_awaited() -> None:
    spec = gate(prometheusQuery={"query": "up", "max": 1})
    up = spec.prometheus_query
    assert state(spec, queries={up: Measured(2.0)}) == "Failed"
    assert state(spec, queries={up: Measured(1.0)}) == "Passed"
    assert state(spec, queries={up: Measured()}) == "Inconclusive"
    assert state(spec, queries={up: Measured(waiting="down")}) == "Waiting"


def test_two_queries_that_differ_in_their_server_alone_have_each_their_own_figure() -> None:
    query = {"query": "up", "max": 1}
    specs = [gate(prometheusQuery={**query, "server": f"http://{name}"}) for name in "ab"]
    figures = {
        spec.prometheus_query: Measured(value)
        for spec, value in zip(specs, (0.0, 2.0), strict=True)
        if spec.prometheus_query
    }
    found = gates.judge(specs, Evidence(queries=figures))
    assert [each.state for each in found] == ["Passed", "Failed"]


def test_smoke_prompts_pass_only_when_all_do() -> None:
    spec = gate(smokePrompts={"configMap": "smoke"})
    assert state(spec, smoke={"smoke": SmokeOutcome(2)}) == "Passed"
    assert (
        state(spec, smoke={"smoke": SmokeOutcome(1, ("capital: expected 'Paris', got 'Rome'",))})
        == "Failed"
    )
    assert state(spec) == "Waiting"


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        ({"exact": "Paris"}, " Paris\n", "Rome"),
        ({"regex": "(?i)paris"}, "It is PARIS.", "Rome"),
        ({"notRegex": "(?i)rome"}, "It is Paris.", "It is ROME."),
        (
            {"jsonSchema": {"type": "object", "required": ["city"]}},
            '{"city": "Paris"}',
            '{"town": 1}',
        ),
        ({"jsonSchema": {"type": "string", "pattern": "^(a+)+$"}}, '"aaa"', '"' + "a" * 40 + 'b"'),
        ({"jsonSchema": {"type": "object"}}, "{}", "no JSON"),
    ],
)
def test_answers_are_compared_as_expected(expect: dict[str, Any], good: str, bad: str) -> None:
    wanted = smoke.Expectation.model_validate(expect)
    assert smoke.fault(wanted, good) is None
    assert smoke.fault(wanted, bad)


def test_a_schema_fetches_nothing_and_does_not_recurse_for_ever() -> None:
    remote = smoke.Expectation.model_validate({"jsonSchema": {"$ref": "http://127.0.0.1:9/schema"}})
    assert "can't be used" in (smoke.fault(remote, "1") or "")
    endless = smoke.Expectation.model_validate({"jsonSchema": {"$ref": "#"}})
    assert "can't be used" in (smoke.fault(endless, "1") or "")


def test_a_schema_of_a_few_references_that_stand_for_a_billion_checks_is_given_up() -> None:
    doubled = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**doubled, "d30": {}}}
    bomb = smoke.Expectation.model_validate({"jsonSchema": schema})
    assert "more than 1000 references are followed" in (smoke.fault(bomb, "1") or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt: a\nexpect: {regex: '(?=a)'}", "not RE2"),
        ("prompt: a\nmessages: []\nexpect: {exact: b}", "exactly one of prompt, messages"),
        ("prompt: a\nexpect: {notRegex: '(?=a)'}", "not RE2"),
        ("prompt: a\nexpect: {}", "exactly one of exact, regex, notRegex, jsonSchema"),
        (
            "prompt: a\nexpect: {contains: b}",
            "expect.contains: unknown; there are exact, regex, notRegex, jsonSchema",
        ),
        (
            "prompt: a\nmax: 1\nexpect: {exact: b}",
            "max: unknown; there are prompt, messages, maxTokens, expect",
        ),
        ("a: [", "not YAML"),
        ("a: &a [x]\nprompt: *a", "has YAML aliases"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_a_broken_entry_is_told_to_its_author(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        smoke.read({"one": text})


async def world_with_prompts(**spec: Any) -> World:
    """Version 1 serves; version 2 has a ready pod and is to be judged by smoke prompts."""
    world = World()
    data = {"capital": "prompt: The capital of France?\nexpect: {exact: Paris}"}
    await world.cluster.create(
        {"kind": "ConfigMap", "metadata": {"name": "smoke", "namespace": NAMESPACE}, "data": data}
    )
    await world.deploy(rollout={"gates": [{"smokePrompts": {"configMap": "smoke"}}]}, **spec)
    await look(world, 3)
    world.registry.aliases["bot"]["champion"] = "2"
    return world


async def look(world: World, times: int) -> None:
    for _ in range(times):
        await reconcile(KEY, world.outside, PACE)
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name)


async def test_a_version_that_answers_right_is_promoted_and_asked_once_with_the_operators_key() -> (
    None
):
    world = await world_with_prompts()
    world.pods.asked.clear()
    await look(world, 4)
    assert world.status()["stable"]["version"] == "2"
    assert len(world.pods.asked) == 1
    _, key, body = world.pods.asked[0]
    assert key.startswith("llmk_")
    assert body["temperature"] == 0
    assert "bot-operator-key" in world.cluster.named("Secret")
    stored = str(world.cluster.objects["Secret", NAMESPACE, "bot-keys"]["data"])
    assert key not in stored


async def test_a_version_that_answers_wrong_never_gets_traffic_and_is_told_with_its_answer() -> (
    None
):
    world = await world_with_prompts()
    old = world.status()["stable"]["revision"]
    world.pods.answer = Answer(200, "Rome")
    await look(world, 4)
    assert world.selected() == old
    failed = world.status()["candidate"]
    assert (failed["outcome"], failed["reason"]) == ("Failed", "GateFailed")
    assert "capital: expected 'Paris', got 'Rome'" in failed["message"]
    assert (
        world.cluster.objects["Deployment", NAMESPACE, f"bot-{failed['revision']}"]["spec"][
            "replicas"
        ]
        == 0
    )
    assert "bot-candidate" not in world.cluster.named("Service")


async def test_a_pod_that_does_not_know_the_key_yet_is_asked_again() -> None:
    world = await world_with_prompts()
    world.pods.answer = Answer(401, "unauthorized")
    await look(world, 3)
    waits = world.status()["candidate"]["gates"][0]
    assert waits["state"] == "Waiting"
    assert "bot-candidate" in world.cluster.named("Service")
    world.pods.answer = Answer(200, "Paris")
    await look(world, 2)
    assert world.status()["stable"]["version"] == "2"


async def test_one_pod_of_three_that_answers_wrong_fails_the_version_and_is_named() -> None:
    world = await world_with_prompts(replicas=3)
    old = world.status()["stable"]["revision"]
    await reconcile(KEY, world.outside, PACE)
    candidate = f"bot-{world.status()['candidate']['revision']}"
    world.pods.answers[f"{candidate}-played-1"] = Answer(200, "Rome")
    world.cluster.play(candidate)
    await look(world, 2)
    failed = world.status()["candidate"]
    assert failed["reason"] == "GateFailed"
    assert f"pod {candidate}-played-1: capital: expected 'Paris', got 'Rome'" in failed["message"]
    assert "2 of 3 passed" in failed["message"]
    assert world.selected() == old


async def test_a_pod_that_gets_ready_late_is_asked_before_the_version_is_promoted_and_the_others_not_again() -> (
    None
):
    world = await world_with_prompts(replicas=3)
    await reconcile(KEY, world.outside, PACE)
    candidate = f"bot-{world.status()['candidate']['revision']}"
    world.pods.asked.clear()
    for ready in (1, 2):
        world.cluster.play(candidate, ready=ready)
        await reconcile(KEY, world.outside, PACE)
    assert sorted(pod for pod, *_ in world.pods.asked) == [
        f"{candidate}-played-0",
        f"{candidate}-played-1",
    ]
    world.pods.answers[f"{candidate}-played-2"] = Answer(200, "Rome")
    world.cluster.play(candidate)
    await reconcile(KEY, world.outside, PACE)
    assert len(world.pods.asked) == 3
    assert f"pod {candidate}-played-2" in world.status()["candidate"]["message"]


async def test_a_pod_that_has_restarted_and_prompts_that_have_changed_are_asked_again() -> None:
    world = await world_with_prompts(replicas=2)
    await look(world, 1)
    candidate = f"bot-{world.status()['candidate']['revision']}"
    world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["metadata"]["annotations"] = {
        "llm-operator.dev/rollout": "pause"
    }
    world.pods.asked.clear()
    await look(world, 2)
    assert len(world.pods.asked) == 2
    pod = world.cluster.objects["Pod", NAMESPACE, f"{candidate}-played-1"]
    pod["status"]["containerStatuses"] = [{"name": "runtime", "restartCount": 1}]
    await reconcile(KEY, world.outside, PACE)
    assert [name for name, *_ in world.pods.asked[2:]] == [f"{candidate}-played-1"]
    prompts = world.cluster.objects["ConfigMap", NAMESPACE, "smoke"]
    prompts["metadata"]["resourceVersion"] = "annotated, and the same prompts"
    await reconcile(KEY, world.outside, PACE)
    assert len(world.pods.asked) == 3
    prompts["data"]["capital"] = "prompt: The capital of France, please?\nexpect: {exact: Paris}"
    await reconcile(KEY, world.outside, PACE)
    assert len(world.pods.asked) == 5


async def test_many_pods_are_asked_a_few_at_a_time_and_the_loop_does_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smoke_prompts, "WORKER_SECONDS", 0.01)
    world = await world_with_prompts(replicas=12)
    await reconcile(KEY, world.outside, PACE)
    candidate = f"bot-{world.status()['candidate']['revision']}"
    held = asyncio.Event()
    running = most = 0

    async def ask(pod: Manifest, key: str, body: Any) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await held.wait()
        running -= 1
        return Answer(200, "Paris")

    monkeypatch.setattr(world.pods, "ask", ask)
    world.cluster.play(candidate)
    await reconcile(KEY, world.outside, PACE)
    assert world.status()["candidate"]["gates"][0]["state"] == "Waiting"
    held.set()
    monkeypatch.setattr(smoke_prompts, "WORKER_SECONDS", 5.0)
    await look(world, 3)
    assert world.status()["stable"]["version"] == "2"
    assert most == PODS_AT_ONCE


async def test_a_first_version_is_behind_no_service_until_its_prompts_are_answered() -> None:
    world = World()
    await world.deploy(
        rollout={"gates": [{"smokePrompts": {"configMap": "smoke"}}]},
        access={"authentication": "Disabled"},
    )
    await look(world, 3)
    assert "bot" not in world.cluster.named("Service")
    assert "does not exist" in world.condition("Progressing")["message"]
    assert "bot-operator-key" not in world.cluster.named("Secret")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "ConfigMap smoke does not exist: create it"),
        (
            {"polite": "prompt: a\nexpect: {contains: b}"},
            "there are exact, regex, notRegex, jsonSchema",
        ),
    ],
)
async def test_prompts_that_cannot_be_asked_are_one_event_and_the_reason_while_they_are_awaited(
    data: dict[str, str] | None, said: str
) -> None:
    world = await world_with_prompts()
    smoke_map = world.cluster.objects.pop(("ConfigMap", NAMESPACE, "smoke"))
    if data is not None:
        await world.cluster.create(
            {**smoke_map, "metadata": {"name": "smoke", "namespace": NAMESPACE}, "data": data}
        )
    await look(world, 5)
    for kind in ("Ready", "Progressing"):
        assert world.condition(kind)["reason"] == "SmokePromptsUnusable"
        assert said in world.condition(kind)["message"]
    events = [found for (kind, *_), found in world.cluster.objects.items() if kind == "Event"]
    told = [found for found in events if found["reason"] == "SmokePromptsUnusable"]
    assert [(found["type"], found["count"], said in found["message"]) for found in told] == [
        ("Warning", 1, True)
    ]


async def test_after_a_switch_the_new_pods_are_compared_with_what_the_old_ones_did_before_it() -> (
    None
):
    world = World()
    await world.deploy(
        rollout={"strategy": "BlueGreen", "gates": [{"maxTimeToFirstTokenP95Ratio": 1.3}]}
    )
    await look(world, 3)
    old = f"bot-{world.status()['stable']['revision']}-played-0"
    world.registry.aliases["bot"]["champion"] = "2"
    world.pods.known = {old: Figures(requests=900, first_token=slow(0.2, 900))}
    await look(world, 2)
    new = f"bot-{world.status()['candidate']['revision']}-played-0"
    assert world.selected() == new.removeprefix("bot-").removesuffix("-played-0")
    for count in range(20, 140, 20):
        world.pods.known[new] = Figures(requests=count, first_token=slow(0.8, count))
        await look(world, 1)
    failed = world.status()["candidate"]
    assert failed["reason"] == "GateFailed"
    assert "samples: candidate 100, stable 900" in failed["message"]
    assert world.selected() == old.removeprefix("bot-").removesuffix("-played-0")


async def test_the_operators_key_goes_with_the_prompts_also_when_another_process_made_it() -> None:
    world = await world_with_prompts()
    await look(world, 4)
    assert "bot-operator-key" in world.cluster.named("Secret")
    world.restarted("example.com/runtime:1")
    await world.deploy(rollout={})
    await look(world, 1)
    assert "bot-operator-key" not in world.cluster.named("Secret")
    await world.deploy(rollout={"gates": [{"smokePrompts": {"configMap": "smoke"}}]})
    await look(world, 2)
    assert "bot-operator-key" in world.cluster.named("Secret")


async def test_a_wrong_answer_that_was_not_written_down_is_found_again_by_the_next_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await world_with_prompts()
    old = world.status()["stable"]["revision"]
    await look(world, 1)
    world.pods.answer = Answer(200, "Rome")

    async def dies(_: Any) -> Any:
        raise Unavailable("killed before it could write")

    with monkeypatch.context() as killed:
        killed.setattr(world.cluster, "apply_status", dies)
        with pytest.raises(Unavailable):
            await reconcile(KEY, world.outside, PACE)
    assert "outcome" not in world.status()["candidate"]
    world.restarted("example.com/runtime:1")
    await look(world, 2)
    assert world.status()["candidate"]["reason"] == "GateFailed"
    assert world.selected() == old


async def test_nobody_is_asked_whom_the_platform_team_has_not_named() -> None:
    heard: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        heard.append(request.url.host)
        return httpx.Response(
            200, json={"status": "success", "data": {"resultType": "scalar", "result": [0, "1"]}}
        )

    asked = HttpPrometheus(
        "http://prometheus:9090/", ["https://thanos"], httpx.MockTransport(answer)
    )
    for server in ("", "http://prometheus:9090", "https://thanos/"):
        assert (await asked.query(server, "up")).value == 1
    for server in (
        "http://169.254.169.254",
        "http://prometheus:9091",
        "http://prometheus:9090@other",
        "http://thanos",
    ):
        refused = await asked.query(server, "up")
        assert server in refused.waiting
        assert "prometheus.allowed" in refused.waiting
    assert heard == ["prometheus", "prometheus", "thanos"]
    await asked.close()


async def test_prometheus_is_asked_by_its_api_and_says_what_is_wrong() -> None:
    replies = [
        {"status": "success", "data": {"resultType": "scalar", "result": [0, "0.5"]}},
        {"status": "success", "data": {"resultType": "vector", "result": [{"value": [0, "2"]}]}},
        {"status": "success", "data": {"resultType": "vector", "result": []}},
        {"status": "success", "data": {"resultType": "vector", "result": [1, 2]}},
        {"status": "error", "errorType": "bad_data", "error": "parse error"},
        {"hello": "world"},
    ]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=replies.pop(0)))
    asked = HttpPrometheus("http://prometheus", transport=transport)
    found = [await asked.query("", "up") for _ in range(6)]
    assert [each.value for each in found] == [0.5, 2.0, None, None, None, None]
    said = [each.waiting for each in found]
    assert said[:3] == ["", "", ""]
    assert "2 series" in said[3]
    assert "parse error" in said[4]
    assert "not Prometheus" in said[5]
    assert "no server" in (await HttpPrometheus().query("", "up")).waiting
    await asked.close()
