"""Asks smoke prompts of every pod that has a candidate, in tasks beside the reconcile: a look finds
what has become of them.

A candidate is a revision, or a version of an adapter that pods have loaded beside the one that
answers.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.ports.cluster import ApiError
from llm_operator.reconcile.own_pods import own_pods
from llm_operator.state import Manifest, Observed, SmokeOutcome
from llm_runtime.contract import is_candidate

SMOKE_SECONDS = 60.0
"""For all prompts of one pod together."""
WORKER_SECONDS = 5.0
"""How long a worker waits for them before it goes on with something else."""
AT_ONCE = 4
"""Prompts that one pod is asked at the same time."""
NOT_YET = (0, 401, 403, 429, 503)
"""Answers of a pod that is not to blame: it has not read its key file yet, or is busy."""
UNKNOWN_MODEL = 404
"""Status for a version of an adapter: the pod has not read its list yet."""

Known = tuple[str, str, str, str, str]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Who is asked."""

    name: str
    """What tells its outcomes from others: the revision,
    or what pods call the version of an adapter."""
    model: str
    """What the prompts ask for."""
    pods: Mapping[str, list[Manifest]]
    """Ready pods that have it, by their revision."""

    @property
    def not_yet(self) -> tuple[int, ...]:
        """Answers of a pod that is asked again."""
        return (*NOT_YET, UNKNOWN_MODEL) if is_candidate(self.name) else NOT_YET


async def outcome(
    outside: Outside, observed: Observed, candidate: Candidate, name: str, key: str
) -> SmokeOutcome:
    """What has become of a ConfigMap's prompts on the candidate's pods,
    which are asked where they were not."""
    try:
        found = await outside.cluster.get("ConfigMap", observed.meta.namespace, name)
    except ApiError as error:
        return SmokeOutcome(waiting=f"ConfigMap {name} can't be read: {error}")
    if found is None:
        return SmokeOutcome(waiting=f"ConfigMap {name} does not exist: create it", unusable=True)
    data = found.get("data") or {}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    asked = {
        (observed.meta.uid, candidate.name, name, digest, _life(pod)): pod
        for pods in candidate.pods.values()
        for pod in pods
    }
    memory = outside.memory
    unasked = [
        known
        for known in asked
        if known not in memory.asking and not _final(memory.smoke.get(known))
    ]
    try:
        own = await _own(outside, observed, candidate, [asked[known] for known in unasked])
    except ApiError as error:
        return SmokeOutcome(waiting=f"whose the candidate's pods are can't be read: {error}")
    for known in unasked:
        if asked[known] in own:
            _begin(outside, known, asked[known], key, candidate, data)
        else:
            del asked[known]
    if not asked:
        return SmokeOutcome(
            waiting="no ready pod is of the candidate's Deployment, though some have its labels"
        )
    if running := [memory.asking[known] for known in asked if known in memory.asking]:
        # The prompts of one deployment keep no worker from the others:
        # a later look finds what has become of them.
        done, _ = await asyncio.wait(running, timeout=WORKER_SECONDS)
        for task in done:
            task.result()
    return _together({_name(pod): memory.smoke.get(known) for known, pod in asked.items()}, name)


async def _own(
    outside: Outside, observed: Observed, candidate: Candidate, pods: list[Manifest]
) -> list[Manifest]:
    asked = {_name(pod) for pod in pods}
    found = [
        await own_pods(outside, observed, revision, [pod for pod in those if _name(pod) in asked])
        for revision, those in candidate.pods.items()
    ]
    return [pod for some in found for pod in some]


def _together(pods: dict[str, SmokeOutcome | None], config_map: str) -> SmokeOutcome:
    """The outcomes of several pods as one: it passes when all have passed."""
    waiting = [(pod, found) for pod, found in pods.items() if found is None or found.waiting]
    known = [found for found in pods.values() if found is not None]
    failures = tuple(
        f"pod {pod}: {wrong}" for pod, found in pods.items() if found for wrong in found.failures
    )
    said = ""
    if waiting and not failures:
        # A wrong answer does not get right while other pods are awaited.
        pod, found = waiting[0]
        said = (
            found.waiting
            if found
            else f"the prompts of ConfigMap {config_map} are being asked of pod {pod}"
        )
    return SmokeOutcome(
        passed=sum(found.passed for found in known),
        failures=failures,
        waiting=said,
        unusable=any(found.unusable for found in known),
        pods=sum(not found.waiting and not found.failures for found in known),
    )


def _final(found: SmokeOutcome | None) -> bool:
    """Whether there is nothing left to ask: a pod that could not answer is asked again."""
    return found is not None and (not found.waiting or found.unusable)


def _life(pod: Manifest) -> str:
    """One life of a pod's serving container:
    begun anew it has another version of its code and state in memory."""
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    restarts = (
        each.get("restartCount")
        for each in containers
        if each.get("name") == names.RUNTIME_CONTAINER
    )
    return f"{pod['metadata'].get('uid', _name(pod))}/{next(restarts, 0)}"


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def _begin(
    outside: Outside,
    known: Known,
    pod: Manifest,
    key: str,
    candidate: Candidate,
    data: dict[str, str],
) -> None:
    memory = outside.memory
    places = memory.places[known[0]]

    async def ask() -> None:
        async with places:
            memory.smoke[known] = await _ask_all(outside, pod, key, candidate, known[2], data)

    def over(task: asyncio.Task[None]) -> None:
        if memory.asking.get(known) is task:
            del memory.asking[known]

    memory.asking[known] = task = asyncio.create_task(ask())
    task.add_done_callback(over)


async def _ask_all(
    outside: Outside,
    pod: Manifest,
    key: str,
    candidate: Candidate,
    config_map: str,
    data: dict[str, str],
) -> SmokeOutcome:
    """What became of a ConfigMap's prompts on one pod."""
    try:
        prompts = await outside.confined.prompts(data)
    except ValueError as error:
        return SmokeOutcome(waiting=f"ConfigMap {config_map}: {error}", unusable=True)
    places = asyncio.Semaphore(AT_ONCE)
    answers = dict[str, str]()

    async def ask(name: str, body: dict[str, Any]) -> tuple[str, str]:
        """What is wrong with the answer, and why there is none yet."""
        async with places:
            answer = await outside.pods.ask(pod, key, {"model": candidate.model, **body})
        if answer.status in candidate.not_yet:
            return (
                "",
                f"pod {_name(pod)} has not answered {name}: {answer.status or ''} {answer.text}",
            )
        if answer.status != 200:
            return f"{name}: status {answer.status}: {answer.text[:200]}", ""
        answers[name] = answer.text
        return "", ""

    try:
        async with asyncio.timeout(SMOKE_SECONDS):
            found = await asyncio.gather(*(ask(name, body) for name, body in prompts.items()))
    except TimeoutError:
        said = (
            f"pod {_name(pod)} has not answered the prompts of ConfigMap {config_map} within"
            f" {SMOKE_SECONDS:.0f} s"
        )
        return SmokeOutcome(waiting=said)
    failures = (
        *(wrong for wrong, _ in found if wrong),
        *await outside.confined.faults(data, answers),
    )
    waiting = next((why for _, why in found if why), "")
    # A wrong answer does not get right while others are awaited.
    return SmokeOutcome(len(found) - len(failures), failures, "" if failures else waiting)
