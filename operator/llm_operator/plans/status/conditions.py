"""Conditions of an LLMDeployment, from what was decided and seen.

They follow kstatus: Ready sums up; Reconciling and Stalled are True only while they apply.
"""

from datetime import timedelta

from llm_operator.crds import Condition
from llm_operator.plans import names
from llm_operator.plans.reasons import Reason
from llm_operator.plans.rollout import stamp
from llm_operator.plans.status import autoscaling
from llm_operator.plans.status.findings import Finding, as_conditions
from llm_operator.plans.status.picture import Picture
from llm_operator.state import Fault, Observed

REGISTRY = frozenset(
    {
        Reason.RegistryDenied,
        Reason.HostNotAllowed,
        Reason.RegistryUnreachable,
        Reason.ConnectionUnknown,
        Reason.ConnectionNotPermitted,
    }
)
KEEPS = REGISTRY | {Reason.ModelDenied}
"""Faults that leave the last known version in force, and so stop nothing that serves."""


def deployment(picture: Picture) -> tuple[Condition, ...]:
    """All conditions, in the order in which a reader wants them."""
    stalled = _stall(picture)
    restarted = _restarted(picture)
    findings: dict[str, Finding] = {
        "Ready": _with(restarted, _ready(picture, stalled)),
        "Reconciling": _reconciling(picture, stalled),
        "Stalled": (
            ("True", stalled.reason, stalled.message)
            if stalled
            else ("False", Reason.NoFault, "nothing is stuck")
        ),
        "Available": _with(restarted, _available(picture)),
        "ModelResolved": _resolved(picture),
        **(
            {"RegistryReachable": _reachable(picture)} if picture.observed.spec.model.mlflow else {}
        ),
        "Applied": _applied(picture),
        "Progressing": _progressing(picture),
        "UsagePersistent": _usage(picture),
    }
    if picture.observed.spec.autoscaling is not None:
        findings["AutoscalingActive"] = autoscaling.finding(picture.observed)
    mlflow = picture.observed.spec.model.mlflow
    if mlflow is not None and mlflow.update_policy == "Manual":
        findings["UpdateAvailable"] = _update(picture.observed)
    if picture.adapters.finding is not None:
        findings["AdaptersReady"] = picture.adapters.finding
    return as_conditions(
        findings, picture.observed.status.conditions, picture.observed.meta.generation, picture.now
    )


def _stall(picture: Picture) -> Fault | None:
    """The fault that will not pass by itself, or that has lasted for as long as a roll-out may
    take."""
    fault = picture.observed.resolution.fault
    candidate = picture.decision.candidate
    if picture.applied is not None and picture.applied.terminal:
        return picture.applied
    if (
        fault is not None
        and fault.terminal
        and not (picture.observed.resolution.last_known and fault.reason in KEEPS)
    ):
        return fault
    if candidate is not None and candidate.outcome is not None:
        return Fault(
            candidate.reason or Reason.ProgressDeadlineExceeded, _failed(picture), terminal=True
        )
    left = picture.stalls_in
    if left is None or left > timedelta() or (fault := picture.serving_fault) is None:
        return None
    seconds = picture.observed.spec.rollout.progress_deadline_seconds
    counted = f"{picture.ready} of {picture.replicas} pods are ready, for more than {seconds} s"
    return Fault(fault.reason, f"{counted}: {fault.message}", terminal=True)


RESTARTS_TOLD = timedelta(days=1)


def _restarted(picture: Picture) -> str:
    """Restarts of the serving pods' containers, for a day,
    because a ready pod shows nothing of them."""
    serving = {pod["metadata"]["name"] for pod in picture.serving_pods}
    recent = [
        restart
        for restart in picture.mishaps.restarts
        if restart.pod in serving and picture.now - restart.finished < RESTARTS_TOLD
    ]
    if not recent:
        return ""
    times = sum(restart.count for restart in recent)
    last = recent[0]
    return (
        f"containers were restarted {times} {'time' if times == 1 else 'times'}, most recently in"
        f" pod {last.pod} at {stamp(last.finished)}: {last.fault.reason}"
    )


def _with(addition: str, finding: Finding) -> Finding:
    status, reason, message = finding
    return status, reason, "; ".join(part for part in (message, addition) if part)


def _failed(picture: Picture) -> str:
    candidate = picture.decision.candidate
    name = picture.observed.meta.name
    assert candidate is not None
    again = (
        f"kubectl delete deployment {name}-{candidate.revision} tries it again"
        if picture.decision.stable
        else ""
    )
    return "; ".join(
        part
        for part in (
            f"model version {candidate.version} failed: {candidate.message}",
            _keeps(picture),
            again,
        )
        if part
    )


def _keeps(picture: Picture) -> str:
    stable = picture.decision.stable
    return f"version {stable.version} keeps serving" if stable and picture.ready else ""


def _ready(picture: Picture, stalled: Fault | None) -> Finding:
    spec = picture.observed.spec
    fault = picture.observed.resolution.fault
    if spec.suspend:
        return (
            "False",
            Reason.Suspended,
            "spec.suspend is true: no pods run; set it to false to serve again",
        )
    if stalled is not None:
        keeps = _keeps(picture)
        tail = f"; {keeps}" if keeps and keeps not in stalled.message else ""
        return "False", stalled.reason, stalled.message + tail
    if picture.observed.resolution.model is None and fault is not None:
        return "False", fault.reason, fault.message
    if picture.applied is not None and picture.applied.reason != Reason.ServiceMonitorMissing:
        return "False", picture.applied.reason, picture.applied.message
    if picture.replicas == 0:
        return "False", Reason.ScaledToZero, "replicas is 0: raise it with kubectl scale"
    if picture.decision.rolling_out:
        return "Unknown", _hindrance(picture), _under_way(picture)
    return _pods_ready(picture)


def _hindrance(picture: Picture) -> str:
    """Why the candidate is not there yet:
    its pods' fault, if there is one, and else that it takes its time."""
    candidate = picture.decision.candidate
    fault = picture.observed.faults.get(candidate.revision) if candidate else None
    if fault:
        return fault.reason
    if candidate is not None and candidate.paused:
        return Reason.Paused
    if any(outcome.unusable for outcome in picture.observed.evidence.smoke.values()):
        return Reason.SmokePromptsUnusable
    return Reason.Downloading if picture.download else Reason.RollingOut


def _under_way(picture: Picture) -> str:
    candidate = picture.decision.candidate
    assert candidate is not None
    children = picture.observed.revisions.get(candidate.revision)
    fault = picture.observed.faults.get(candidate.revision)
    pods = picture.decision.replicas.get(candidate.revision, picture.replicas)
    counted = (
        f"{children.ready if children else 0} of {pods} pods of version {candidate.version} are"
        " ready"
    )
    decision = picture.decision
    message = fault.message if fault else ""
    parts = (counted, picture.download, decision.stage, _keeps(picture), message, decision.advice)
    return "; ".join(part for part in parts if part)


def _scaling(picture: Picture) -> tuple[str, str]:
    """Reason and message while pods of the serving revision are starting."""
    counted = f"{picture.ready} of {picture.replicas} pods are ready"
    download = picture.download
    return (Reason.Downloading, f"{counted}; {download}") if download else (Reason.Scaling, counted)


def _pods_ready(picture: Picture) -> Finding:
    stable = picture.decision.stable
    ready = picture.ready
    wanted = picture.replicas
    if ready >= wanted and stable is not None:
        return (
            "True",
            Reason.Serving,
            f"{wanted} of {wanted} pods serve model version {stable.version}",
        )
    fault = picture.serving_fault
    if fault is not None:
        return "False", fault.reason, f"{ready} of {wanted} pods are ready: {fault.message}"
    return "Unknown", *_scaling(picture)


def _reconciling(picture: Picture, stalled: Fault | None) -> Finding:
    if stalled is not None or picture.observed.spec.suspend:
        return "False", Reason.Settled, "nothing is under way"
    if picture.decision.rolling_out and picture.replicas:
        return (
            "True",
            Reason.Downloading if picture.download else Reason.RollingOut,
            _under_way(picture),
        )
    fault = picture.applied or (
        picture.observed.resolution.fault if picture.observed.resolution.model is None else None
    )
    if fault is not None and fault.reason != Reason.ServiceMonitorMissing:
        return "True", Reason.Retrying, fault.message
    if picture.ready < picture.replicas:
        return "True", *_scaling(picture)
    return "False", Reason.Settled, "nothing is under way"


def _available(picture: Picture) -> Finding:
    if picture.ready:
        return "True", Reason.Serving, f"{picture.ready} ready pods are behind the Service"
    fault = picture.serving_fault
    if fault is not None:
        return "False", fault.reason, fault.message
    meta = picture.observed.meta
    look = f"kubectl -n {meta.namespace} get pods -l {names.DEPLOYMENT_LABEL}={meta.name}"
    return "False", Reason.NoReadyPods, f"no pod behind the Service is ready ({look})"


def _resolved(picture: Picture) -> Finding:
    model = picture.observed.resolution.model
    fault = picture.observed.resolution.fault
    if model is not None:
        known = f" (as last known: {fault.message})" if fault else ""
        return "True", Reason.Resolved, f"{model.name} is version {model.version}{known}"
    assert fault is not None
    return ("False" if fault.terminal else "Unknown"), fault.reason, fault.message


def _update(observed: Observed) -> Finding:
    """UpdateAvailable, which exists with updatePolicy Manual only. While the registry is silent, a
    version that waited still waits."""
    if observed.available is not None:
        return "True", Reason.ApprovalNeeded, _waiting(observed)
    if observed.resolution.last_known:
        before = next((c for c in observed.status.conditions if c.type == "UpdateAvailable"), None)
        if before is not None:
            return before.status, before.reason, before.message
    return "False", Reason.UpToDate, "the reference stands for the version in use"


def _waiting(observed: Observed) -> str:
    """What waits, and the command that lets it go."""
    found = observed.available
    used = observed.resolution.model
    reference = observed.spec.model.mlflow
    assert found is not None
    assert used is not None
    assert reference is not None
    meta = observed.meta
    word = observed.approval_word
    again = ", registered anew under the same number" if word != found.version else ""
    kept = (
        f"version {used.version} is kept"
        if not again
        else "the former content is kept as long as pods hold it"
    )
    if (
        (stable := observed.status.stable) is not None
        and stable.version != used.version
        and not again
    ):
        kept = f"version {used.version} stays the target, and version {stable.version} serves"
    return (
        f"{found.name}@{reference.alias or reference.stage} is version {found.version}{again},"
        f" {kept}: kubectl -n {meta.namespace} annotate llmd/{meta.name} --overwrite"
        f" {names.APPROVE_ANNOTATION}={word}"
    )


def _reachable(picture: Picture) -> Finding:
    fault = picture.observed.resolution.fault
    if fault is not None and fault.reason in REGISTRY:
        return "False", fault.reason, fault.message
    where = picture.observed.connection
    refusal = f"; {picture.observed.verdict_refusal}" if picture.observed.verdict_refusal else ""
    return (
        "True",
        Reason.Reachable,
        (f"MLflow at {where.tracking_uri} answers" if where else "MLflow answers") + refusal,
    )


def _applied(picture: Picture) -> Finding:
    if picture.applied is not None:
        return "False", picture.applied.reason, picture.applied.message
    return "True", Reason.Applied, "all children are as planned"


def _progressing(picture: Picture) -> Finding:
    status, reason, progress = _progress(picture)
    return status, reason, "; ".join((progress, *picture.decision.remarks))


def _progress(picture: Picture) -> Finding:
    candidate = picture.decision.candidate
    stable = picture.decision.stable
    if candidate is None:
        message = (
            f"revision {stable.revision} is rolled out" if stable else "nothing to roll out yet"
        )
        return (
            ("True" if stable else "False"),
            (Reason.RolledOut if stable else Reason.Resolving),
            message,
        )
    if candidate.outcome is not None:
        return "False", candidate.reason or Reason.ProgressDeadlineExceeded, _failed(picture)
    if picture.observed.spec.suspend:
        return (
            "True",
            Reason.Suspended,
            f"revision {candidate.revision} is rolled out when spec.suspend is false",
        )
    if picture.replicas == 0:
        return (
            "True",
            Reason.ScaledToZero,
            f"revision {candidate.revision} is rolled out when replicas is raised",
        )
    return "True", _hindrance(picture), _under_way(picture)


def _usage(picture: Picture) -> Finding:
    """Where usage goes. Never a part of Ready: a pod whose Secret is missing says so by itself."""
    database = picture.observed.spec.database
    missing = picture.observed.database_missing
    if missing:
        return "False", Reason.DatabaseSecretMissing, missing
    if database.secret_ref is None:
        limits = (
            "each pod counts limits for itself"
            if picture.replicas > 1
            else "a new pod counts limits from zero"
        )
        message = (
            f"usage is in the pod's SQLite and is lost with the pod, and {limits}; write"
            " spec.database.secretRef {name, key} of a Secret that holds"
            " postgresql://user:password@host/database"
        )
        return "False", Reason.NoDatabase, message
    where = f"under {database.secret_ref.key} in Secret {database.secret_ref.name}"
    return "True", Reason.DatabaseConfigured, f"usage goes to the database whose address is {where}"
