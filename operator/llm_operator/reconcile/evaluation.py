"""The Jobs of evaluations: made, looked at, read and cleaned up.
What is judged by them: plans/evidence/gates.py."""

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from llm_operator.crds import CandidateStatus, GateVerdict
from llm_operator.crds.rollout import EvaluationSpec, GateSpec, JudgeSpec
from llm_operator.crds.status import RevisionStatus
from llm_operator.evaluation.task import Judge, Side, Task, outcome, pods_to_json, to_json
from llm_operator.observe import Outside, connection_for
from llm_operator.plans import names
from llm_operator.plans.evidence import gates
from llm_operator.plans.objects import adapter_versions, keys
from llm_operator.plans.objects import evaluation as objects
from llm_operator.ports.cluster import ApiError, Conflict, NotFound
from llm_operator.ports.registry import RegistryFault
from llm_operator.reconcile.own_pods import own_pods
from llm_operator.state import (
    NO_POD,
    AdapterVersions,
    EvaluationOutcome,
    Manifest,
    Meta,
    Observed,
    Pods,
)

log = logging.getLogger(__name__)
AGAIN = timedelta(seconds=60)
"""Time after which an evaluation that could not be made is tried again. Until then the status says
what it waits for."""
PODS_ASKED = 8
"""Largest number of pods that are asked of each side."""


@dataclass(frozen=True)
class Asked:
    """One side of an evaluation."""

    side: Side
    pods: Mapping[str, Iterable[Manifest]]
    """Ready pods that have it, by their revision."""


@dataclass(frozen=True)
class Subject:
    """Who is judged by evaluations, and beside whom."""

    mark: str
    """What tells its Jobs from others' of the same deployment."""
    gates: tuple[GateSpec, ...]
    told: tuple[GateVerdict, ...]
    """What its gates said when the status was last written."""
    candidate: Asked
    stable: Asked | None
    connection: str
    """Connection to the server that has the version and, where a gate names none, its dataset."""
    model: str = ""
    made_by: str = ""
    """The MLflow run that made its version."""
    field: str = "spec.rollout.gates[].evaluation"
    """Field of the specification in which its gates are written."""


def of_revision(observed: Observed, candidate: CandidateStatus) -> Subject:
    """The candidate of a roll-out."""

    def asked(revision: RevisionStatus) -> Asked:
        children = observed.revisions.get(revision.revision)
        side = Side(f"revision {revision.revision}", revision.version, observed.meta.name)
        return Asked(side, {revision.revision: children.ready_pods if children else ()})

    stable = observed.status.stable
    reference = observed.spec.model.mlflow
    model = observed.status.model
    same = model is not None and model.version == candidate.version
    return Subject(
        candidate.revision,
        observed.spec.rollout.evaluations,
        candidate.gates or (),
        asked(candidate),
        asked(stable) if stable else None,
        reference.connection if reference else "default",
        reference.name if reference else "",
        model.run_id or "" if reference and model and same else "",
    )


def of_adapter(observed: Observed, versions: AdapterVersions) -> Subject:
    """A version of an adapter that is judged. Its pods are asked for both versions."""
    judged = versions.judged
    assert judged is not None
    assert versions.spread is not None
    loaded = versions.spread.loaded
    serves = versions.serves
    adapter = next(each for each in observed.adapters if each.spec.name == judged.name)
    alias = names.loaded_as(judged)

    def side(version: str, name: str) -> Side:
        return Side(
            f"adapter {judged.name} version {version}", version, f"{observed.meta.name}:{name}"
        )

    before = {
        revision: [
            pod for pod in pods if serves and adapter_versions.answers(observed, serves, pod)
        ]
        for revision, pods in loaded.items()
    }
    model = adapter.resolution.model
    return Subject(
        alias,
        adapter.spec.evaluations,
        judged.gates,
        Asked(side(judged.version, alias), loaded),
        Asked(side(serves.version, serves.name), before) if serves else None,
        judged.connection,
        judged.model,
        model.run_id if model and model.version == judged.version else "",
        "spec.adapters[].gates[].evaluation",
    )


Outcomes = Mapping[str, Mapping[str, EvaluationOutcome]]
"""By subject, and by gates.key."""


async def outcomes(
    outside: Outside,
    observed: Observed,
    subjects: Iterable[Subject],
    key: str | None,
    missing: str,
) -> Outcomes:
    """What has become of the evaluations of all who are judged by some.
    Jobs of others are deleted. `key`: the operator's own; None: see `missing`."""
    wanted = {
        _name(observed, subject, gate): (subject, gate)
        for subject in subjects
        for gate in subject.gates
    }
    found = dict[str, EvaluationOutcome]()
    for name, (subject, gate) in wanted.items():
        if (known := gates.decided_before(gate, subject.told)) is not None:
            found[name] = EvaluationOutcome(kept=known)
    open_ = wanted.keys() - found.keys()
    try:
        jobs = await _tidied(outside, observed, frozenset(wanted), look=bool(open_))
    except ApiError as error:
        found |= {name: EvaluationOutcome(waiting=str(error)) for name in open_}
        open_ = set()
    if open_ and key is None:
        secret = names.operator_key_secret(observed.meta)
        said = missing or f"Secret {secret} was not made by the operator: rename or delete it"
        found |= {name: EvaluationOutcome(waiting=said) for name in open_}
        open_ = set()

    async def one(name: str) -> EvaluationOutcome:
        subject, gate = wanted[name]
        try:
            return await _outcome(outside, observed, subject, gate, key or "", jobs.get(name), name)
        except (ApiError, RegistryFault, _NotPossible) as fault:
            return EvaluationOutcome(waiting=str(fault))

    found |= dict(zip(open_, await asyncio.gather(*map(one, open_)), strict=True))
    together = dict[str, dict[str, EvaluationOutcome]]()
    for name, (subject, gate) in wanted.items():
        together.setdefault(subject.mark, {})[gates.key(gate)] = found[name]
    return together


def _name(observed: Observed, subject: Subject, gate: GateSpec) -> str:
    """Name of the Job: the same whenever and by whichever process it is made."""
    marks = (observed.meta.uid, subject.mark, gates.key(gate))
    return f"evaluation-{hashlib.sha256(' '.join(marks).encode()).hexdigest()[:16]}"


async def _tidied(
    outside: Outside, observed: Observed, wanted: frozenset[str], *, look: bool
) -> dict[str, Manifest]:
    """The Jobs of a deployment's evaluations by name, once those that are not wanted are deleted.

    They are looked at where `look` says so, and where others are wanted than at the last look: a
    replaced candidate's would go on asking. The process before this one may have left some.
    """
    meta = observed.meta
    known = outside.memory.evaluating
    nothing = None if observed.spec.evaluates else frozenset[str]()
    if not look and known.get(meta.uid, nothing) == wanted:
        return {}
    jobs = {each["metadata"]["name"]: each for each in await _jobs(outside, meta)}
    for name in jobs.keys() - wanted:
        await _delete(outside, jobs.pop(name))
    known[meta.uid] = wanted
    return jobs


async def forget(outside: Outside, meta: Meta) -> None:
    """Delete all Jobs of an LLMDeployment's evaluations.
    What is left deletes itself some time later."""
    try:
        for job in await _jobs(outside, meta):
            await _delete(outside, job)
    except ApiError as error:
        log.warning(
            "%s/%s: the Jobs of its evaluations are not deleted: %s",
            meta.namespace,
            meta.name,
            error,
        )


async def _jobs(outside: Outside, meta: Meta) -> list[Manifest]:
    if not outside.evaluation.pod_template:
        return []
    labels = f"{names.EVALUATION_LABEL}={names.evaluation_label(meta.namespace, meta.name)}"
    return await outside.cluster.list("Job", _own(outside), labels)


async def _delete(outside: Outside, job: Manifest) -> None:
    about = job["metadata"]
    await outside.cluster.delete("Job", about["namespace"], about["name"], about["uid"])


def _own(outside: Outside) -> str:
    """The operator's own namespace."""
    return outside.installation.partition("/")[0]


class _NotPossible(Exception):
    """Why an evaluation can't be begun as things are."""


async def _outcome(
    outside: Outside,
    observed: Observed,
    subject: Subject,
    gate: GateSpec,
    key: str,
    job: Manifest | None,
    name: str,
) -> EvaluationOutcome:
    if not outside.evaluation.pod_template:
        raise _NotPossible(
            "the operator's configuration has no evaluation.podTemplate, which the chart writes"
        )
    namespace = _own(outside)
    spec = _spec(gate)
    ended = _ended(job) if job else None
    if job is not None and ended is not None:
        found = await _read(outside, job)
        if found.waiting and outside.clock() - ended > AGAIN:
            await _delete(outside, job)
        return found
    pods = Pods(
        await _addresses(outside, observed, subject.candidate),
        await _addresses(outside, observed, subject.stable) if subject.stable else (),
    )
    if job is None:
        if not pods.candidate:
            raise _NotPossible(NO_POD)
        # What can't be asked is told before there is a Job.
        task = await _task(outside, observed, subject, spec, key)
        template = outside.evaluation.pod_template
        wanted = objects.job(observed.meta, name, namespace, template, spec.deadline_seconds)
        with suppress(Conflict):
            job = await outside.cluster.create(wanted)
            await _hand_over(outside, job, task, pods)
        return EvaluationOutcome(waiting=f"Job {namespace}/{name} was made")
    if outside.memory.handed.get(job["metadata"]["uid"]) != pods:
        try:
            change = {"data": keys.encode({objects.PODS_FILE: pods_to_json(pods)})}
            await outside.cluster.patch("Secret", namespace, name, change)
            outside.memory.handed[job["metadata"]["uid"]] = pods
        except NotFound:
            # Its pod waits for the task, which an operator that ended in between has not written.
            task = await _task(outside, observed, subject, spec, key)
            await _hand_over(outside, job, task, pods)
    return EvaluationOutcome(
        waiting=f"Job {namespace}/{name} is asking the records of dataset {spec.dataset}"
    )


def _spec(gate: GateSpec) -> EvaluationSpec:
    assert gate.evaluation is not None
    return gate.evaluation


async def _hand_over(outside: Outside, job: Manifest, task: Task, pods: Pods) -> None:
    """Write what the Job has to do, if it is not written."""
    with suppress(Conflict):
        await outside.cluster.create(objects.task_secret(job, to_json(task), pods_to_json(pods)))
        outside.memory.handed[job["metadata"]["uid"]] = pods


async def _task(
    outside: Outside, observed: Observed, subject: Subject, spec: EvaluationSpec, key: str
) -> Task:
    """What the Job has to do. Raises _NotPossible, RegistryFault and ApiError."""
    meta = observed.meta
    connection = spec.connection or subject.connection
    await connection_for(outside, meta.namespace, connection, subject.field)
    return Task(
        spec=spec,
        namespace=meta.namespace,
        name=meta.name,
        connection=connection,
        candidate=subject.candidate.side,
        stable=subject.stable.side if subject.stable else None,
        model=subject.model,
        made_by=subject.made_by if connection == subject.connection else "",
        key=key,
        judges=tuple(
            [await _judge(outside, meta, each.judge) for each in spec.scorers if each.judge]
        ),
        write=outside.connections.current()[connection].write_verdicts,
    )


async def _addresses(outside: Outside, observed: Observed, asked: Asked) -> tuple[str, ...]:
    """Addresses of the pods that are surely its own, as they are now."""
    found = [
        pod
        for revision, pods in asked.pods.items()
        for pod in await own_pods(outside, observed, revision, pods)
    ][:PODS_ASKED]
    addresses = [str((pod.get("status") or {}).get("podIP") or "") for pod in found]
    return tuple(filter(None, addresses))


async def _judge(outside: Outside, meta: Meta, judge: JudgeSpec) -> Judge:
    if judge.url is not None and judge.url not in outside.evaluation.judges:
        raise _NotPossible(
            f"the judge {judge.url} is none of evaluation.judges in the operator's configuration:"
            " have the platform team add it, or name an LLMDeployment"
        )
    url = judge.url or await _endpoint(outside, meta.namespace, judge.deployment or "")
    key = ""
    if (reference := judge.key_ref) is not None:
        secret = await outside.cluster.get("Secret", meta.namespace, reference.name)
        if names.reserved(reference.name, secret) and not _of_api_key(secret):
            raise _NotPossible(
                f"Secret {reference.name} is the operator's own: write the judge's key into another"
            )
        key = keys.decode(secret or {}, reference.key) or ""
        if not key:
            raise _NotPossible(
                f"Secret {reference.name} with the judge's key has no {reference.key}: create it"
            )
    return Judge(url, judge.model or judge.deployment or "", key)


async def _endpoint(outside: Outside, namespace: str, name: str) -> str:
    found = await outside.cluster.get("LLMDeployment", namespace, name)
    if found is None:
        raise _NotPossible(f"the judge, LLMDeployment {name}, does not exist: create it")
    port = (found["spec"].get("service") or {}).get("port", 80)
    return f"http://{name}.{namespace}.svc:{port}/v1"


def _of_api_key(secret: Manifest | None) -> bool:
    """Whether it holds the key of an ApiKey, which is its owner's."""
    owners = (secret or {}).get("metadata", {}).get("ownerReferences") or []
    return any(each.get("kind") == "ApiKey" and each.get("controller") for each in owners)


def _ended(job: Manifest) -> datetime | None:
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return None


async def _read(outside: Outside, job: Manifest) -> EvaluationOutcome:
    """What the Job's pod has reported."""
    namespace = job["metadata"]["namespace"]
    name = job["metadata"]["name"]
    for pod in await outside.cluster.list("Pod", namespace, f"batch.kubernetes.io/job-name={name}"):
        for container in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (container.get("state") or {}).get("terminated") or {}
            if ended.get("exitCode") == 0 and ended.get("message"):
                try:
                    return outcome(ended["message"])
                except ValueError as error:
                    return EvaluationOutcome(
                        waiting=f"Job {namespace}/{name} reported no outcome: {error}"
                    )
    told = [
        each.get("message") or each.get("reason") or ""
        for each in job["status"].get("conditions") or []
    ]
    said = "; ".join(filter(None, told)) or "its pod is gone"
    return EvaluationOutcome(
        waiting=(
            f"Job {namespace}/{name} ended without an outcome ({said}): kubectl -n {namespace} logs"
            f" job/{name}"
        )
    )
