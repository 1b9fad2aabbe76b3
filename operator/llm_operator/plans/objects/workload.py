"""The Deployment of each revision, and the ConfigMap that is its snapshot."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llm_operator.plans import names
from llm_operator.plans.objects.containers import STORE_VARIABLES
from llm_operator.plans.rollout import Decision
from llm_operator.state import Manifest, Meta, Observed
from llm_runtime import contract

TEMPLATE_FILE = "template.json"


@dataclass(frozen=True)
class Snapshot:
    """What a revision's pods are made from: the configuration file and the pods' template."""

    config: str
    template: Manifest


def objects(
    observed: Observed, decision: Decision, snapshots: Mapping[str, Snapshot]
) -> list[Manifest]:
    """The objects of the revisions that are kept."""
    return [
        made
        for name, each in snapshots.items()
        for made in (
            _config_map(observed.meta, name, each),
            _deployment(observed, decision, name, each.template),
        )
    ]


def _config_map(meta: Meta, revision: str, snapshot: Snapshot) -> Manifest:
    """Immutable snapshot of a revision: drift is repaired and undo is done from here,
    not from newer operator code."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(meta, names.child(meta, revision), revision),
        "immutable": True,
        "data": {contract.CONFIG_FILE: snapshot.config, TEMPLATE_FILE: _text(snapshot.template)},
    }


def _text(template: Manifest) -> str:
    return json.dumps(template, sort_keys=True)


def digest(template: Manifest) -> str:
    """Digest of a template, as the annotation of the Deployment holds it."""
    return hashlib.sha256(_text(template).encode()).hexdigest()


def _deployment(
    observed: Observed, decision: Decision, revision: str, template: Manifest
) -> Manifest:
    """The Deployment of one revision. Its template never changes; only `replicas` does."""
    meta = observed.meta
    strategy: Manifest = (
        {"type": "Recreate"}
        if decision.interrupts
        else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    )
    about = names.metadata(meta, names.child(meta, revision), revision)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**about, "annotations": {names.TEMPLATE_ANNOTATION: digest(template)}},
        "spec": {
            "replicas": decision.replicas[revision],
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": observed.spec.rollout.progress_deadline_seconds,
            "selector": {"matchLabels": names.selector(meta, revision)},
            "strategy": strategy,
            "template": template,
        },
    }


def uses(template: Manifest) -> Iterator[tuple[str, str, bool]]:
    """Objects that the operator makes and that pods of this template mount by name:
    kind, name, and whether they are optional."""
    spec = template["spec"]
    yield "ServiceAccount", spec["serviceAccountName"], False
    for volume in spec["volumes"]:
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], bool(volume["secret"].get("optional"))
        elif "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], False


def reads(meta: Meta, template: Manifest) -> Iterator[str]:
    """The Secrets that the specification names: their content is the containers'."""
    fetch = template["spec"]["initContainers"][0]
    serve = template["spec"]["containers"][0]
    yield from (each["secretRef"]["name"] for each in fetch.get("envFrom") or ())
    for container, own in ((fetch, names.registry_secret(meta)), (serve, None)):
        sources = [each.get("valueFrom") or {} for each in container["env"]]
        yield from {each["secretKeyRef"]["name"] for each in sources if "secretKeyRef" in each} - {
            own
        }


def store_secret(template: Manifest) -> str | None:
    """The Secret of an artifact store's credentials, of which only some keys are read."""
    found = (
        each
        for each in template["spec"]["initContainers"][0]["env"]
        if each["name"] == STORE_VARIABLES[0]
    )
    return next((str(each["valueFrom"]["secretKeyRef"]["name"]) for each in found), None)
