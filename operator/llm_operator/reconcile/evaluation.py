"""The Jobs of evaluations: made, looked at, read and cleaned up.
What is judged by them: plans/evidence/gates.py."""

import asyncio
import hashlib
import logging
from contextlib import suppress
from datetime import datetime, timedelta

from llm_operator.crds import CandidateStatus
from llm_operator.crds.rollout import EvaluationSpec, GateSpec, JudgeSpec
from llm_operator.evaluation.task import Judge, Side, Task, outcome, to_json
from llm_operator.observe import Outside, connection_for
from llm_operator.plans import names
from llm_operator.plans.evidence import gates
from llm_operator.plans.objects import evaluation as objects
from llm_operator.plans.objects import keys
from llm_operator.ports.cluster import ApiError, Conflict
from llm_operator.ports.registry import RegistryFault
from llm_operator.reconcile.own_pods import own_ready_pods
from llm_operator.state import NO_POD, EvaluationOutcome, Manifest, Meta, Observed

log = logging.getLogger(__name__)
AGAIN = timedelta(seconds=60)
"""After which an evaluation that could not be made is tried again:
until then what it waits for is told."""
PODS_ASKED = 8
"""Of each side."""


async def outcomes(
    outside: Outside, observed: Observed, candidate: CandidateStatus, key: str | None, missing: str
) -> dict[str, EvaluationOutcome]:
    """What has become of each evaluation, by gates.key.
    `key`: the operator's own; None: see `missing`."""

    async def one(gate: GateSpec) -> EvaluationOutcome:
        assert gate.evaluation is not None
        known = (observed.meta.uid, candidate.revision, gates.key(gate))
        if known not in outside.memory.evaluations:
            try:
                if key is None:
                    secret = names.operator_key_secret(observed.meta)
                    return EvaluationOutcome(
                        waiting=missing or f"Secret {secret} exists and is not ours: delete it"
                    )
                found = await _outcome(outside, observed, candidate, gate, key)
            except (ApiError, RegistryFault, _NotPossible) as fault:
                return EvaluationOutcome(waiting=str(fault))
            if found.waiting:
                return found
            outside.memory.evaluations[known] = found
        return outside.memory.evaluations[known]

    evaluations = observed.spec.rollout.evaluations
    found = await asyncio.gather(*(one(gate) for gate in evaluations))
    return dict(zip(map(gates.key, evaluations), found, strict=True))


async def tidy(outside: Outside, observed: Observed) -> None:
    """Delete the Jobs of evaluations that are over.
    One look per process: the one before it may have left some."""
    if outside.memory.evaluating.get(observed.meta.uid, bool(observed.spec.rollout.evaluations)):
        await forget(outside, observed.meta.namespace, observed.meta.name)
    outside.memory.evaluating[observed.meta.uid] = False


async def forget(outside: Outside, namespace: str, name: str) -> None:
    """Delete all Jobs of an LLMDeployment's evaluations.
    What is left deletes itself some time later."""
    if not outside.evaluation.pod_template:
        return
    own = outside.installation.partition("/")[0]
    labels = f"{names.EVALUATION_LABEL}={names.evaluation_label(namespace, name)}"
    try:
        for job in await outside.cluster.list("Job", own, labels):
            await outside.cluster.delete(
                "Job", own, job["metadata"]["name"], job["metadata"]["uid"]
            )
    except ApiError as error:
        log.warning(
            "%s/%s: the Jobs of its evaluations are not deleted: %s", namespace, name, error
        )


class _NotPossible(Exception):
    """Why an evaluation can't be begun as things are."""


async def _outcome(
    outside: Outside, observed: Observed, candidate: CandidateStatus, gate: GateSpec, key: str
) -> EvaluationOutcome:
    if not outside.evaluation.pod_template:
        raise _NotPossible(
            "the operator's configuration has no evaluation.podTemplate, which the chart writes"
        )
    namespace = outside.installation.partition("/")[0]
    marks = (observed.meta.uid, candidate.revision, candidate.started_at or "", gates.key(gate))
    name = f"evaluation-{hashlib.sha256(' '.join(marks).encode()).hexdigest()[:16]}"
    job = await outside.cluster.get("Job", namespace, name)
    if job is None:
        # What can't be asked is told before there is a Job.
        task = await _task(outside, observed, candidate, _spec(gate), key)
        outside.memory.evaluating[observed.meta.uid] = True
        template = outside.evaluation.pod_template
        wanted = objects.job(observed.meta, name, namespace, template, _spec(gate).deadline_seconds)
        with suppress(Conflict):
            await _hand_over(outside, await outside.cluster.create(wanted), task)
        return EvaluationOutcome(waiting=f"Job {namespace}/{name} begins to ask")
    ended = _ended(job)
    if ended is None:
        if not int((job.get("status") or {}).get("ready") or 0):
            # Its pod waits for the task, which an operator that ended in between has not written.
            await _hand_over(
                outside, job, await _task(outside, observed, candidate, _spec(gate), key)
            )
        return EvaluationOutcome(
            waiting=f"Job {namespace}/{name} asks the records of dataset {_spec(gate).dataset}"
        )
    found = await _read(outside, job)
    if found.waiting and outside.clock() - ended > AGAIN:
        await outside.cluster.delete("Job", namespace, name, job["metadata"]["uid"])
    return found


def _spec(gate: GateSpec) -> EvaluationSpec:
    assert gate.evaluation is not None
    return gate.evaluation


async def _hand_over(outside: Outside, job: Manifest, task: Task) -> None:
    """Write what the Job has to do, if it is not written."""
    with suppress(Conflict):
        await outside.cluster.create(objects.task_secret(job, to_json(task)))


async def _task(
    outside: Outside, observed: Observed, candidate: CandidateStatus, spec: EvaluationSpec, key: str
) -> Task:
    """What the Job has to do. Raises _NotPossible, RegistryFault and ApiError."""
    meta = observed.meta
    reference = observed.spec.model.mlflow
    connection = spec.connection or (reference.connection if reference else "default")
    await connection_for(outside, meta.namespace, connection, "spec.rollout.gates[].evaluation")
    stable = observed.status.stable
    own = await _side(outside, observed, candidate.revision, candidate.version)
    if not own.addresses:
        raise _NotPossible(NO_POD)
    model = observed.status.model
    same = model is not None and reference is not None and connection == reference.connection
    return Task(
        spec=spec,
        namespace=meta.namespace,
        name=meta.name,
        connection=connection,
        candidate=own,
        stable=await _side(outside, observed, stable.revision, stable.version) if stable else None,
        model=reference.name if reference else "",
        made_by=model.run_id or "" if same and model and model.version == candidate.version else "",
        key=key,
        judges=tuple(
            [await _judge(outside, meta, each.judge) for each in spec.scorers if each.judge]
        ),
        write=outside.connections.current()[connection].write_verdicts,
    )


async def _side(outside: Outside, observed: Observed, revision: str, version: str) -> Side:
    pods = (await own_ready_pods(outside, observed, revision))[:PODS_ASKED]
    addresses = [str((pod.get("status") or {}).get("podIP") or "") for pod in pods]
    return Side(revision, version, tuple(filter(None, addresses)))


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
