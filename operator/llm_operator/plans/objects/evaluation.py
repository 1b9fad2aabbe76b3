"""The Job of an evaluation, in the operator's own namespace,
and the Secret with what it has to do."""

import copy

from llm_operator.plans import names
from llm_operator.plans.objects.keys import encode
from llm_operator.state import Manifest, Meta

TASK_FILE = "task.json"
PODS_FILE = "pods.json"
"""Beside it, with the addresses of those that are asked."""
TASK_MOUNT = "/etc/llm-operator/task"
REPORT = "/dev/termination-log"
"""Where Kubernetes reads a container's last word.
Written out: the process node has another file in its place."""
MARGIN_SECONDS = 300
"""Seconds by which the Job's deadline exceeds the evaluation's own, for its start, the dataset and
the run."""
KEPT_SECONDS = 7 * 86_400
"""Seconds after which Kubernetes deletes an ended Job that the operator has forgotten. Others are
deleted with their roll-out."""


def job(
    owner: Meta, name: str, namespace: str, template: Manifest, deadline_seconds: int
) -> Manifest:
    """The Job. `template`: of its pods, as the platform has configured it."""
    pod = copy.deepcopy(template)
    marks = {
        **(pod.get("metadata", {}).get("labels") or {}),
        names.EVALUATION_LABEL: names.evaluation_label(owner.namespace, owner.name),
        "app.kubernetes.io/managed-by": names.MANAGED_BY,
    }
    pod["metadata"] = {**pod.get("metadata", {}), "labels": marks}
    spec = pod["spec"]
    spec["restartPolicy"] = "Never"
    spec["volumes"] = [
        *(spec.get("volumes") or []),
        {"name": "task", "secret": {"secretName": name}},
    ]
    container = spec["containers"][0]
    arguments = [f"--task={TASK_MOUNT}/{TASK_FILE}", f"--report={REPORT}"]
    container["args"] = [*(container.get("args") or []), "evaluate", *arguments]
    mount = {"name": "task", "mountPath": TASK_MOUNT, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": marks,
            "annotations": {names.DEPLOYMENT_LABEL: f"{owner.namespace}/{owner.name}"},
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": deadline_seconds + MARGIN_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": pod,
        },
    }


def task_secret(made: Manifest, task: str, pods: str) -> Manifest:
    """What the Job has to do, which is deleted with it.
    `made`: the Job as the API server has it."""
    about = made["metadata"]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": about["name"],
        "uid": about["uid"],
        "controller": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": about["name"],
            "namespace": about["namespace"],
            "labels": about["labels"],
            "ownerReferences": [owner],
        },
        "type": "Opaque",
        "data": encode({TASK_FILE: task, PODS_FILE: pods}),
    }
