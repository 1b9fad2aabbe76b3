"""No status is left standing: whatever is refused is told,
and the roll-out's record goes on without it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_operator import plans
from llm_operator.ports.cluster import Invalid, NotFound, Refused, Unanswered, Unavailable, _explain
from llm_operator.reconcile import Retry
from llm_operator.state import Manifest
from unit.operator.fakes import NAMESPACE, World
from unit.operator.test_reconcile_llmdeployment import look, serving

WEBHOOK = Unavailable(
    'Internal error occurred: failed calling webhook "x.example.com": connection refused (500 on …)'
)
POLICY = Refused("denied by ValidatingAdmissionPolicy (422)")
TYPED = Unavailable("failed to create typed patch object: duplicate entries for key (500 on …)")


async def tried(world: World, times: int = 2) -> None:
    """Looks as they come when something is refused: again and again."""
    for _ in range(times):
        try:
            await look(world)
        except (Retry, Unavailable, Refused):
            continue


def told(world: World, kind: str = "Applied") -> tuple[str, str]:
    condition = world.condition(kind)
    return condition["status"], condition["message"]


def promote(world: World, version: str) -> None:
    world.registry.aliases["bot"]["champion"] = version


async def monitored(**spec: Any) -> tuple[World, str]:
    """Serves, in a cluster that knows ServiceMonitors."""
    world = World()
    world.cluster.kinds["ServiceMonitor"] = True
    return world, await serving(world, **spec)


async def test_a_webhook_that_is_away_is_told_once_it_lasts_and_what_is_decided_is_recorded() -> (
    None
):
    world, old = await monitored()
    world.cluster.faults = {("apply", "ServiceMonitor"): WEBHOOK}
    promote(world, "2")
    await tried(world)
    new = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{new}")
    await tried(world)
    assert world.status()["stable"] == {**world.status()["stable"], "revision": new, "version": "2"}
    assert [entry["revision"] for entry in world.status()["history"]] == [old]
    status, message = told(world)
    assert status == "False"
    assert "ServiceMonitor bot was refused" in message
    assert "failed calling webhook" in message
    assert world.condition("Reconciling")["status"] == "True"
    assert world.cluster.events().count("ApplyFailed") == 1
    world.clock.pass_seconds(10)
    await tried(world)
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{old}"]["spec"]["replicas"] == 0
    world.cluster.faults = {}
    await look(world)
    assert told(world)[0] == "True"


async def test_a_new_deployment_says_what_is_refused() -> None:
    world = World()
    world.cluster.faults = {("apply", "Service"): WEBHOOK}
    await world.deploy()
    await tried(world)
    for kind in ("Applied", "Ready"):
        assert world.condition(kind)["status"] == "False"
        assert "Service bot was refused" in world.condition(kind)["message"]
    assert world.status()["observedGeneration"] == 1
    assert world.status()["model"]["version"] == "1"


async def test_a_child_that_can_never_be_valid_is_stuck_and_not_asked_for_again_and_again() -> None:
    world = World()
    world.cluster.faults = {
        ("apply", "Deployment"): Invalid("requests: must be less than or equal to cpu limit (422)")
    }
    await world.deploy()
    done = await look(world)
    found = {kind: world.condition(kind) for kind in ("Ready", "Reconciling", "Stalled", "Applied")}
    assert {kind: each["status"] for kind, each in found.items()} == {
        "Ready": "False",
        "Reconciling": "False",
        "Stalled": "True",
        "Applied": "False",
    }
    assert found["Stalled"]["reason"] == "ChildInvalid"
    assert "must be less than or equal to cpu limit" in found["Stalled"]["message"]
    assert "change what the specification says" in found["Stalled"]["message"]
    assert (done.after_seconds or 1e9) > 60  # Not at the pace of what somebody else may put right.
    world.cluster.faults = {}
    await world.deploy(replicas=2)
    await look(world)
    assert world.condition("Stalled")["status"] == "False"


@pytest.mark.parametrize(
    ("said", "for_good"),
    [
        (
            {
                "message": "invalid",
                "details": {"causes": [{"field": "spec.replicas", "message": "too many"}]},
            },
            True,
        ),
        (
            {
                "message": (
                    'admission webhook "quota.example.com" denied the request: no room in team-a'
                )
            },
            False,
        ),
        (
            {
                "message": "ValidatingAdmissionPolicy 'q' denied request",
                "details": {"causes": [{"message": "q"}]},
            },
            False,
        ),
    ],
)
def test_only_what_validation_refuses_is_invalid_for_good(said: Manifest, for_good: bool) -> None:
    """Webhooks and policies choose their own code, and may think otherwise later."""
    error = _explain(422, "Unprocessable Entity", json.dumps(said).encode(), "/path")
    assert isinstance(error, Invalid) is for_good


async def test_one_failure_of_the_api_server_that_passes_is_not_told() -> None:
    world, _ = await monitored()
    before = world.status()
    world.cluster.faults = {("apply", "Service"): WEBHOOK}
    await tried(world, times=1)
    world.cluster.faults = {}
    await look(world)
    assert world.status() == before
    assert "ApplyFailed" not in world.cluster.events()


async def test_a_preview_that_is_refused_holds_up_no_promotion() -> None:
    world, _ = await monitored()
    world.cluster.faults = {("apply", "Service", "bot-candidate"): WEBHOOK}
    promote(world, "2")
    await tried(world)
    new = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{new}")
    await tried(world)
    assert (world.selected(), world.status()["stable"]["revision"]) == (new, new)


@pytest.mark.parametrize(
    "kind", ["ServiceMonitor", "Service", "PodDisruptionBudget", "Secret", "ServiceAccount"]
)
async def test_the_deadline_holds_whatever_is_refused(kind: str) -> None:
    world, old = await monitored(replicas=2, rollout={"progressDeadlineSeconds": 20})
    world.cluster.faults = {("apply", kind): POLICY}
    promote(world, "2")
    await tried(world)
    assert world.status()["candidate"]["startedAt"] == "2026-01-01T00:00:00Z"
    world.clock.pass_seconds(21)
    await tried(world)
    candidate = world.status()["candidate"]
    assert (candidate["outcome"], candidate["reason"]) == ("Failed", "ProgressDeadlineExceeded")
    assert (
        world.cluster.objects["Deployment", NAMESPACE, f"bot-{candidate['revision']}"]["spec"][
            "replicas"
        ]
        == 0
    )
    assert world.status()["stable"]["revision"] == old
    assert world.cluster.events().count("RolloutFailed") == 1


async def test_a_canary_goes_on_while_a_side_object_is_refused() -> None:
    steps = {"strategy": "Canary", "canary": {"steps": [{"weight": 50, "holdSeconds": 2}]}}
    world, _ = await monitored(replicas=2, rollout=steps)
    world.cluster.faults = {("apply", "ServiceMonitor"): POLICY}
    promote(world, "2")
    for _ in range(8):
        await tried(world)
        for name in world.cluster.named("Deployment"):
            world.cluster.play(name)
        world.clock.pass_seconds(3)
    assert world.status()["stable"]["version"] == "2"


async def test_no_pod_is_stopped_for_a_service_that_did_not_turn() -> None:
    world, old = await monitored()
    promote(world, "2")
    await look(world)
    new = world.status()["candidate"]["revision"]
    world.cluster.play(f"bot-{new}")
    world.cluster.faults = {("apply", "Service", "bot"): WEBHOOK}
    for _ in range(4):
        await tried(world)
        world.clock.pass_seconds(10)
    assert (world.selected(), world.status()["stable"]["revision"]) == (old, old)
    assert world.cluster.objects["Deployment", NAMESPACE, f"bot-{old}"]["spec"]["replicas"] == 1
    assert "RolledOut" not in world.cluster.events()[2:]
    world.cluster.faults = {}
    await look(world)
    assert (world.selected(), world.status()["stable"]["revision"]) == (new, new)


async def test_a_child_that_cannot_be_deleted_is_told_and_holds_up_nothing() -> None:
    world, _ = await monitored(
        autoscaling={"maxReplicas": 2, "metrics": [{"type": "CPU", "target": 80}]}
    )
    await world.deploy()
    world.cluster.faults = {("delete", "HorizontalPodAutoscaler"): WEBHOOK}
    promote(world, "2")
    await tried(world)
    assert world.status()["candidate"]["version"] == "2"
    assert (
        "HorizontalPodAutoscaler bot is not wanted any more and could not be deleted"
        in told(world)[1]
    )


async def test_an_apply_that_cannot_be_merged_reaches_the_user_although_it_is_a_500() -> None:
    world = World()
    world.cluster.faults = {("apply", "Deployment"): TYPED}
    await world.deploy()
    await tried(world)
    assert world.condition("Ready")["reason"] == "ApplyFailed"
    assert "duplicate entries for key" in told(world)[1]
    assert "ApplyFailed" in world.cluster.events()


async def test_an_api_server_that_says_nothing_is_not_asked_about_each_object() -> None:
    world, _ = await monitored()
    world.cluster.writes.clear()
    world.cluster.faults = {
        ("apply", kind): Unanswered("time-out") for kind in ("ServiceAccount", "Service")
    }
    await tried(world)
    assert "time-out" in told(world)[1]
    assert not [kind for _, kind, _ in world.cluster.writes if kind == "Deployment"]


async def test_a_service_monitor_crd_that_has_just_gone_holds_up_nothing() -> None:
    world, _ = await monitored()
    world.cluster.faults = {("list", "ServiceMonitor"): NotFound("404")}
    promote(world, "2")
    await look(world)
    assert world.status()["candidate"]["version"] == "2"
    world.cluster.faults = {
        (verb, "ServiceMonitor"): Refused("403") for verb in ("list", "get", "apply")
    }
    await tried(world)
    assert "ServiceMonitor bot was refused: 403" in told(world)[1]


async def test_events_that_may_not_be_read_hold_up_nothing() -> None:
    world = World()
    await world.deploy()
    await look(world)
    revision = world.status()["candidate"]["revision"]
    labels = {"llm-operator.dev/deployment": "bot", "llm-operator.dev/revision": revision}
    meta = {"name": "p", "namespace": NAMESPACE, "labels": labels}
    await world.cluster.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"nodeName": "n"}}
    )
    world.cluster.objects["Pod", NAMESPACE, "p"]["status"] = {
        "phase": "Pending",
        "containerStatuses": [
            {"name": "runtime", "state": {"waiting": {"reason": "ContainerCreating"}}}
        ],
    }
    world.cluster.faults = {("list", "Event"): Refused("403")}
    await look(world)
    assert world.condition("Progressing")["status"] == "True"


@pytest.mark.parametrize("fault", [WEBHOOK, Refused("pods is forbidden (403)")])
async def test_a_look_that_fails_is_told_and_what_was_known_stays(
    fault: Refused | Unavailable,
) -> None:
    world, revision = await monitored()
    world.cluster.faults = {("list", "Pod"): fault}
    await tried(world)
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("Unknown", "NotObserved")
    assert str(fault) in ready["message"]
    assert world.condition("Reconciling")["status"] == "True"
    assert world.status()["stable"]["revision"] == revision
    assert world.cluster.events().count("NotObserved") == 1
    world.cluster.faults = {}
    await look(world)
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Reconciling")["status"] == "False"


async def test_an_error_of_the_operator_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world, _ = await monitored()

    def broken(*_: object, **__: object) -> None:
        raise ValueError("Exceeds the limit (4300 digits)")

    with monkeypatch.context() as patched:
        patched.setattr(plans, "deployment", broken)
        with pytest.raises(ValueError, match="4300"):
            await look(world)
    assert world.condition("Ready")["reason"] == "NotObserved"
    assert (
        "an error of the operator itself: ValueError: Exceeds the limit"
        in world.condition("Ready")["message"]
    )
    await look(world)
    assert world.condition("Ready")["status"] == "True"


async def test_a_status_that_cannot_be_read_is_left_out_alone() -> None:
    world, revision = await monitored()
    status = world.cluster.objects["LLMDeployment", NAMESPACE, "bot"]["status"]
    status |= {"conditions": [{"type": "Ready"}], "history": "long", "model": {"name": 7}}
    await look(world)
    assert world.status()["stable"]["revision"] == revision
    assert world.condition("Ready")["status"] == "True"


async def test_a_status_that_is_refused_is_told_as_far_as_it_can_be() -> None:
    world, revision = await monitored()
    promote(world, "2")
    write = world.cluster.apply_status
    refusals = []

    async def strict(manifest: dict[str, Any]) -> dict[str, Any]:
        if "candidate" in manifest["status"]:
            refusals.append(manifest)
            raise Refused("status.candidate.strategy: Unsupported value (422)")
        return await write(manifest)

    world.cluster.apply_status = strict  # type: ignore[method-assign]
    with pytest.raises(Refused):
        await look(world)
    assert refusals
    assert "status.candidate.strategy: Unsupported value" in world.condition("Ready")["message"]
    assert world.status()["stable"]["revision"] == revision


async def test_gates_that_cannot_be_asked_wait_and_the_deadline_does_not() -> None:
    gates = {"gates": [{"smokePrompts": {"configMap": "greet"}}], "progressDeadlineSeconds": 20}
    world = World()
    world.cluster.faults = {
        ("create", "Secret", "bot-operator-key"): POLICY,
        ("get", "ConfigMap", "greet"): POLICY,
    }
    await world.deploy(rollout=gates)
    await look(world)
    world.cluster.play(f"bot-{world.status()['candidate']['revision']}")
    await look(world)
    assert "denied by ValidatingAdmissionPolicy" in str(world.status()["candidate"]["gates"])
    world.clock.pass_seconds(21)
    await look(world)
    assert world.status()["candidate"]["outcome"] == "Failed"


async def test_verdicts_and_looks_go_on_while_a_side_object_is_refused() -> None:
    world, _ = await monitored(rollout={"progressDeadlineSeconds": 60})
    world.cluster.faults = {("apply", "ServiceMonitor"): POLICY}
    promote(world, "2")
    with pytest.raises(Retry) as again:
        await look(world)
    assert any(key.kind == "SecretCheck" for key, _ in again.value.done.later)
    assert (again.value.done.after_seconds or 99) <= 61
