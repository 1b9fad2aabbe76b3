"""Runs load probes in tasks beside the reconcile: the same load on the candidate and on what
serves, in turns. A revision has a pod of its own; versions of an adapter share one."""

import asyncio
from dataclasses import dataclass
from typing import Any

from llm_operator.crds import CandidateStatus
from llm_operator.crds.rollout import LoadProbe
from llm_operator.crds.status import LoadStatus
from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.plans.evidence import gates, loadprobe
from llm_operator.plans.objects import adapter_versions
from llm_operator.ports.cluster import ApiError
from llm_operator.ports.pods import Answer
from llm_operator.reconcile.own_pods import own_pods, own_ready_pods
from llm_operator.state import NO_POD, AdapterVersions, Manifest, Observed, ProbeOutcome
from llm_runtime.contract import LoadFigures

AGAIN_SECONDS = 10.0
"""After a probe that could not be made, until it is tried anew."""
RUNS = "the load probe runs"
NO_SUCH_PATH = 404
NEVER = (400, 413, 422)
"""Answers that another try does not change."""


@dataclass(frozen=True)
class Side:
    """Who is loaded."""

    pod: Manifest
    adapter: str = ""
    """Name of an adapter, or of a candidate of one; empty: the model itself."""


async def of_revision(
    outside: Outside,
    observed: Observed,
    candidate: CandidateStatus,
    probe: LoadProbe,
    key: str | None,
    missing: str,
) -> ProbeOutcome:
    """What has become of a load probe of a roll-out's candidate; begun where it was not."""
    known = (observed.meta.uid, candidate.revision, probe)
    before = outside.memory.probes.get(known)
    if before is not None and not before.waiting:
        return before
    if candidate.traffic_since is not None:
        # Asked before it had traffic, perhaps by another process of the operator.
        # With Recreate the traffic came before there was a pod to ask.
        same = (each for each in observed.spec.rollout.gates or () if each.load_probe == probe)
        kept = gates.decided_before(next(same), candidate.gates or ())
        return ProbeOutcome(kept=kept, message="it was not made before the candidate had traffic")
    if (hindrance := _hindrance(outside, known, key, missing)) is not None:
        return hindrance
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
    beside = Side(pods[1]) if pods[1] else None
    return _begun(outside, known, Side(pods[0]), beside, figures, key or "")


async def of_adapter(
    outside: Outside,
    observed: Observed,
    versions: AdapterVersions,
    probe: LoadProbe,
    key: str | None,
    missing: str,
) -> ProbeOutcome:
    """The same of a version of an adapter, in a pod that has loaded what serves as well."""
    judged = versions.judged
    serves = versions.serves
    assert judged is not None
    assert versions.spread is not None
    known = (observed.meta.uid, names.loaded_as(judged), probe)
    before = outside.memory.probes.get(known)
    if before is not None and not before.waiting:
        return before
    if serves is None:
        return ProbeOutcome(message="no version answers that it could be compared with")
    if (hindrance := _hindrance(outside, known, key, missing)) is not None:
        return hindrance
    try:
        for revision, pods in versions.spread.loaded.items():
            for pod in await own_pods(outside, observed, revision, pods):
                if adapter_versions.answers(observed, serves, pod):
                    own = Side(pod, known[1])
                    return _begun(outside, known, own, Side(pod, serves.name), None, key or "")
    except ApiError as error:
        return ProbeOutcome(waiting=f"whose the pods are can't be read: {error}")
    return ProbeOutcome(waiting="no pod has loaded both versions yet")


def _hindrance(
    outside: Outside, known: tuple[str, str, LoadProbe], key: str | None, missing: str
) -> ProbeOutcome | None:
    """Why a probe can't be begun now; None where it can."""
    if known in outside.memory.probing:
        return outside.memory.probes.get(known) or ProbeOutcome(waiting=RUNS)
    if not key:
        return ProbeOutcome(waiting=missing or "the operator has no key of its own yet")
    return None


async def _pod(outside: Outside, observed: Observed, revision: str) -> Manifest | None:
    return next(iter(await own_ready_pods(outside, observed, revision)), None)


def _begun(
    outside: Outside,
    known: tuple[str, str, LoadProbe],
    own: Side,
    stable: Side | None,
    figures: LoadStatus | None,
    key: str,
) -> ProbeOutcome:
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
    return memory.probes.get(known) or ProbeOutcome(waiting=RUNS)


async def _in_turns(
    outside: Outside,
    probe: LoadProbe,
    own: Side,
    stable: Side | None,
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
        for name, side in sorted(sides.items(), reverse=number % 2 == 0):
            asked = {**body, "adapter": side.adapter} if side.adapter else body
            found = await outside.pods.probe(side.pod, key, asked)
            pod = side.pod["metadata"]["name"]
            if isinstance(found, Answer):
                return _refused(pod, found)
            if found.dropped:
                return ProbeOutcome(waiting=f"clients queue at pod {pod}, who come first")
            block[name] = found
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
