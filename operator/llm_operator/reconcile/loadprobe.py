"""Runs load probes in tasks beside the reconcile: the same load on a pod of the candidate and on
one of stable, in turns."""

import asyncio
from typing import Any

from llm_operator.crds import CandidateStatus
from llm_operator.crds.rollout import LoadProbe
from llm_operator.crds.status import LoadStatus
from llm_operator.observe import Outside
from llm_operator.plans.evidence import gates, loadprobe
from llm_operator.ports.cluster import ApiError
from llm_operator.ports.pods import Answer
from llm_operator.reconcile.own_pods import own_ready_pods
from llm_operator.state import NO_POD, Manifest, Observed, ProbeOutcome
from llm_runtime.contract import LoadFigures

AGAIN_SECONDS = 10.0
"""After a probe that could not be made, until it is tried anew."""
NO_SUCH_PATH = 404
NEVER = (400, 413, 422)
"""Answers that another try does not change."""


async def outcome(
    outside: Outside,
    observed: Observed,
    candidate: CandidateStatus,
    probe: LoadProbe,
    key: str | None,
    missing: str,
) -> ProbeOutcome:
    """What has become of a load probe, which is begun where it was not."""
    memory = outside.memory
    known = (observed.meta.uid, candidate.revision, probe)
    before = memory.probes.get(known)
    if before is not None and not before.waiting:
        return before
    if candidate.traffic_since is not None:
        # Asked before it had traffic, perhaps by another process of the operator.
        # With Recreate the traffic came before there was a pod to ask.
        same = (each for each in observed.spec.rollout.gates or () if each.load_probe == probe)
        kept = gates.decided_before(next(same), candidate.gates or ())
        return ProbeOutcome(kept=kept, message="it was not made before the candidate had traffic")
    if known in memory.probing:
        return before or ProbeOutcome(waiting="the load probe runs")
    if not key:
        return ProbeOutcome(waiting=missing or "the operator has no key of its own yet")
    stable = observed.status.stable.revision if observed.status.stable else ""
    try:
        pods = [
            await _pod(outside, observed, revision) for revision in (candidate.revision, stable)
        ]
    except ApiError as error:
        return ProbeOutcome(waiting=f"whose the pods are can't be read: {error}")
    if pods[0] is None:
        return ProbeOutcome(waiting=NO_POD)
    loads = observed.status.stable.loads if observed.status.stable else None
    figures = loadprobe.same(probe, loads or ())
    if pods[1] is None and figures is None:
        return ProbeOutcome(message="there is no ready pod of the stable revision to compare with")
    _begin(outside, known, pods[0], pods[1], figures, key)
    return before or ProbeOutcome(waiting="the load probe runs")


async def _pod(outside: Outside, observed: Observed, revision: str) -> Manifest | None:
    return next(iter(await own_ready_pods(outside, observed, revision)), None)


def _begin(
    outside: Outside,
    known: tuple[str, str, LoadProbe],
    own: Manifest,
    stable: Manifest | None,
    figures: LoadStatus | None,
    key: str,
) -> None:
    memory = outside.memory

    async def run() -> None:
        memory.probes[known] = found = await _in_turns(outside, known[2], own, stable, figures, key)
        if found.waiting:
            await asyncio.sleep(AGAIN_SECONDS)

    def over(task: asyncio.Task[None]) -> None:
        if memory.probing.get(known) is task:
            del memory.probing[known]

    memory.probing[known] = task = asyncio.create_task(run())
    task.add_done_callback(over)


async def _in_turns(
    outside: Outside,
    probe: LoadProbe,
    own: Manifest,
    stable: Manifest | None,
    figures: LoadStatus | None,
    key: str,
) -> ProbeOutcome:
    """Pairs of blocks, the first of which only warms up. Who goes first takes turns, too.

    `figures`: stable's of its own promotion, which take the place of its blocks where it has no
    pod.
    """
    body: dict[str, Any] = {
        "concurrency": probe.concurrency,
        "seconds": probe.seconds / loadprobe.BLOCKS,
        "prompt_tokens": probe.prompt_tokens,
        "max_tokens": probe.max_tokens,
    }
    blocks = []
    for number in range(loadprobe.BLOCKS + 1):
        block = dict[str, LoadFigures]()
        sides = {"stable": stable, "own": own} if stable else {"own": own}
        for side, pod in sorted(sides.items(), reverse=number % 2 == 0):
            found = await outside.pods.probe(pod, key, body)
            if isinstance(found, Answer):
                return _refused(pod["metadata"]["name"], found)
            if found.dropped:
                return ProbeOutcome(
                    waiting=f"clients queue at pod {pod['metadata']['name']}, who come first"
                )
            block[side] = found
        if number:
            blocks.append((block["own"], block.get("stable")))
    return ProbeOutcome(tuple(blocks), before=None if stable else figures)


def _refused(pod: str, answer: Answer) -> ProbeOutcome:
    if answer.status == NO_SUCH_PATH:
        return ProbeOutcome(
            message=f"the runtime of pod {pod} is too old for load probes: use a newer image"
        )
    said = f"pod {pod} has made no load probe: {answer.status or ''} {answer.text}"
    return ProbeOutcome(message=said) if answer.status in NEVER else ProbeOutcome(waiting=said)
