"""Stand-ins at the operator's seams: a cluster and a registry that live in dictionaries,
and a clock that obeys."""

from __future__ import annotations

import builtins
import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from llm_operator import crds
from llm_operator.confined.__main__ import work
from llm_operator.confined.children import Confined
from llm_operator.observe import Outside
from llm_operator.ports.cluster import ApiError, Conflict, Invalid, NotFound, Refused, Unavailable
from llm_operator.ports.pods import Answer
from llm_operator.ports.registry import (
    AliasNotFound,
    Choices,
    ModelNotFound,
    ModelSummary,
    Reference,
    RegistryFault,
)
from llm_operator.settings import ConnectionSettings
from llm_operator.state import Connection, Figures, Manifest, ModelVersion
from llm_runtime.contract import LoadFigures

NAMESPACE = "team"
URI = "http://mlflow:5000"
IMAGE = "example.com/runtime:1"


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class FakeCluster:
    """The Cluster port on a dictionary: generations,
    resourceVersions and uids as an API server counts them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.writes: list[tuple[str, str, str]] = []
        self.down = False
        self.refuses: set[str] = set()
        """Kinds whose writes are refused."""
        self.faults: dict[tuple[str, ...], ApiError] = {}
        """What a verb on a kind is answered with,
        or on one object of it: by (verb, kind) or (verb, kind, name)."""
        self.forbids: set[str] = set()
        """Namespaces that may not be listed."""
        self.kinds = {"ServiceMonitor": False, "HTTPRoute": False, "ScaledObject": False}
        self._count = 0

    def _next(self) -> str:
        self._count += 1
        return str(self._count)

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        self._answer("", "get", kind, name)
        found = self.objects.get((kind, namespace, name))
        return copy.deepcopy(found) if found else None

    async def seen(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return await self.get(kind, namespace, name)

    async def list(
        self, kind: str, namespace: str, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        self._answer("", "list", kind)
        if namespace in self.forbids:
            raise Refused(f"cannot list {kind} in the namespace {namespace}")
        wanted = dict(pair.split("=") for pair in labels.split(",") if pair)
        named = dict(pair.split("=") for pair in fields.split(",") if pair)
        return [
            copy.deepcopy(found)
            for (have, place, _), found in sorted(self.objects.items())
            if have == kind
            and namespace in ("", place)
            and wanted.items() <= (found["metadata"].get("labels") or {}).items()
            and all(_at(found, path) == value for path, value in named.items())
        ]

    async def read(
        self, kind: str, namespace: str, reader: Callable[[Manifest], Any]
    ) -> builtins.list[Any]:
        return [reader(item) for item in await self.list(kind, namespace)]

    async def apply(self, manifest: Manifest) -> Manifest:
        kind = manifest["kind"]
        meta = manifest["metadata"]
        self._answer(kind, "apply", kind, meta["name"])
        key = (kind, meta.get("namespace", ""), meta["name"])
        before = self.objects.get(key)
        if "uid" in meta and (before is None or before["metadata"]["uid"] != meta["uid"]):
            raise Conflict(f"uid mismatch on {key}")
        if (
            before is not None
            and meta.get("resourceVersion", before["metadata"]["resourceVersion"])
            != (before["metadata"]["resourceVersion"])
        ):
            raise Conflict(f"{key} has changed since it was read")
        if (
            before is not None
            and before.get("immutable")
            and before["data"] != manifest.get("data")
        ):
            raise Refused("field is immutable when `immutable` is set")
        fixed = manifest.get("type")
        if before is not None and before.get("type", fixed) != fixed:
            raise Invalid("type: field is immutable")
        return self._store("apply", key, _merged(before or {}, manifest))

    async def apply_status(self, manifest: Manifest) -> Manifest:
        self._answer("", "status", manifest["kind"], manifest["metadata"]["name"])
        key = (manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        if (
            key not in self.objects
            or self.objects[key]["metadata"]["uid"] != manifest["metadata"]["uid"]
        ):
            raise Conflict(f"uid mismatch on {key}")
        return self._store("status", key, {**self.objects[key], "status": manifest["status"]})

    async def create(self, manifest: Manifest) -> Manifest:
        kind = manifest["kind"]
        meta = manifest["metadata"]
        self._answer(kind, "create", kind, meta["name"])
        self._answer(kind, "apply", kind, meta["name"])  # Who refuses one refuses the other.
        key = (kind, meta.get("namespace", ""), meta["name"])
        if key in self.objects:
            raise Conflict(f"{key} exists")
        return self._store("create", key, copy.deepcopy(manifest))

    async def patch(self, kind: str, namespace: str, name: str, change: Manifest) -> Manifest:
        self._answer(kind, "patch", kind, name)
        key = (kind, namespace, name)
        if key not in self.objects:
            raise NotFound(f"no {key}")
        version = change.get("metadata", {}).get("resourceVersion")
        if version and version != self.objects[key]["metadata"]["resourceVersion"]:
            raise Conflict("changed since it was read")
        return self._store("patch", key, _merged(self.objects[key], change))

    async def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        self._answer(kind, "delete", kind, name)
        found = self.objects.get((kind, namespace, name))
        if found is not None and uid in ("", found["metadata"]["uid"]):
            self.writes.append(("delete", kind, name))
            del self.objects[kind, namespace, name]

    async def serves(self, kind: str) -> bool:
        return self.kinds[kind]

    def _answer(self, kind: str = "", *asked: str) -> None:
        if fault := self.faults.get(asked[:2]) or self.faults.get(asked):
            raise fault
        if self.down:
            raise Unavailable("the API server does not answer")
        if kind in self.refuses:
            raise Refused(f"{kind}: exceeded quota")

    def _store(self, verb: str, key: tuple[str, str, str], after: Manifest) -> Manifest:
        before = self.objects.get(key)
        if before is not None and _bare(before) == _bare(after):
            return copy.deepcopy(before)
        meta = dict(after["metadata"])
        meta.setdefault("uid", f"uid-{self._next()}")
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        if before is None or before.get("spec") != after.get("spec"):
            meta["generation"] = (before["metadata"].get("generation", 0) if before else 0) + 1
        meta["resourceVersion"] = self._next()
        self.objects[key] = copy.deepcopy({**after, "metadata": meta})
        self.writes.append((verb, key[0], key[2]))
        return copy.deepcopy(self.objects[key])

    def play(self, name: str, ready: int | None = None) -> None:
        """The Deployment controller and the kubelet:
        as many pods as wanted, ready unless told otherwise."""
        deployment = self.objects["Deployment", NAMESPACE, name]
        wanted = deployment["spec"]["replicas"]
        played = [k for k in self.objects if k[0] == "Pod" and k[2].startswith(f"{name}-played-")]
        uids = {key[2]: self.objects.pop(key)["metadata"]["uid"] for key in played}
        by = {
            "kind": "Deployment",
            "name": name,
            "uid": deployment["metadata"]["uid"],
            "controller": True,
        }
        meta = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-of-{name}",
            "ownerReferences": [by],
        }
        self.objects["ReplicaSet", NAMESPACE, name] = {"kind": "ReplicaSet", "metadata": meta}
        made_by = {"kind": "ReplicaSet", "name": name, "uid": meta["uid"], "controller": True}
        for number in range(wanted):
            state = "True" if ready is None or number < ready else "False"
            pod = f"{name}-played-{number}"
            self.objects["Pod", NAMESPACE, pod] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": (
                    {
                        "name": pod,
                        "namespace": NAMESPACE,
                        "labels": deployment["metadata"]["labels"],
                    }
                    | {
                        "uid": uids.get(pod) or f"uid-{self._next()}",
                        "resourceVersion": self._next(),
                        "ownerReferences": [made_by],
                    }
                ),
                "status": {
                    "phase": "Running",
                    "podIP": "127.0.0.1",
                    "conditions": [{"type": "Ready", "status": state}],
                },
            }
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": wanted,
            "readyReplicas": wanted if ready is None else ready,
        }

    def named(self, kind: str) -> builtins.list[str]:
        return sorted(name for have, _, name in self.objects if have == kind)

    def events(self) -> builtins.list[str]:
        return [found["reason"] for (kind, _, _), found in self.objects.items() if kind == "Event"]


def _at(manifest: Manifest, path: str) -> Any:
    """The value of a field selector."""
    for part in path.split("."):
        manifest = manifest[part]
    return manifest


def _bare(manifest: Manifest) -> Manifest:
    meta = {
        k: v
        for k, v in manifest["metadata"].items()
        if k not in ("resourceVersion", "generation", "uid")
    }
    return {**manifest, "metadata": meta}


def _merged(before: Any, change: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = dict(before)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(before.get(key), value)
    return merged


class FakeRegistry:
    """name → alias → version; or one fault for everything."""

    def __init__(self) -> None:
        self.aliases: dict[str, dict[str, str]] = {"bot": {"champion": "1"}}
        self.fault: RegistryFault | None = None
        self.asked = self.choices_asked = self.summaries = self.tag_reads = self.tag_writes = 0
        self.tags_of: dict[tuple[str, str], dict[str, str]] = {}
        """By name and version."""
        self.tag_fault: RegistryFault | None = None
        """For those who write only."""
        self.registered_at = ""
        """Of every version."""
        self.model_made = ""
        """When every model was registered."""
        self.sources: dict[tuple[str, str], str] = {}
        """By name and version, where it is not the usual one."""
        self.breaks: dict[str, Exception] = {}
        """What everything asked of a server ends with, by its address."""
        self.model_faults: dict[str, RegistryFault] = {}
        """Of questions about one model, by its name."""

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        self.asked += 1
        if (
            fault := self.breaks.get(connection.tracking_uri)
            or self.fault
            or self.model_faults.get(reference.name)
        ):
            raise fault
        if reference.name not in self.aliases:
            raise ModelNotFound(f"no model {reference.name}")
        if reference.alias and reference.alias not in self.aliases[reference.name]:
            raise AliasNotFound(f"no alias {reference}")
        version = reference.version or self.aliases[reference.name][reference.alias or ""]
        source = self.sources.get((reference.name, version), f"s3://{reference.name}/{version}")
        return ModelVersion(reference.name, version, source, "run", self.registered_at)

    async def tags(self, connection: Connection, name: str, version: str) -> dict[str, str]:
        self.tag_reads += 1
        if self.fault is not None:
            raise self.fault
        return dict(self.tags_of.get((name, version), {}))

    async def tag(
        self, connection: Connection, name: str, version: str, key: str, value: str
    ) -> None:
        if self.fault or self.tag_fault:
            raise self.fault or self.tag_fault  # type: ignore[misc]
        self.tag_writes += 1
        self.tags_of.setdefault((name, version), {})[key] = value

    async def untag(self, connection: Connection, name: str, version: str, key: str) -> None:
        if self.fault or self.tag_fault:
            raise self.fault or self.tag_fault  # type: ignore[misc]
        self.tag_writes += 1
        del self.tags_of[name, version][key]

    async def tagged(
        self, connection: Connection, key: str
    ) -> dict[tuple[str, str], dict[str, str]]:
        if self.fault is not None:
            raise self.fault
        return {version: dict(tags) for version, tags in self.tags_of.items() if key in tags}

    async def choices(
        self, connection: Connection, reference: Reference, *, model: bool
    ) -> Choices:
        self.choices_asked += 1
        return Choices(dict.fromkeys(self.aliases, "") if model else self.aliases[reference.name])

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        self.summaries += 1
        if fault := self.breaks.get(connection.tracking_uri) or self.fault:
            raise fault
        return {
            name: ModelSummary(
                dict(aliases), {"None": max(aliases.values())} if aliases else {}, self.model_made
            )
            for name, aliases in self.aliases.items()
        }


def loaded(slower: float) -> LoadFigures:
    """Figures of a load probe."""
    return LoadFigures(
        answers=20,
        tokens_per_second=100 / slower,
        first_token_seconds=(0.1 * slower, 0.2 * slower),
        inter_token_seconds=(0.02 * slower, 0.04 * slower),
    )


class FakePods:
    """Figures by pod name; a pod that is not here does not answer.
    Prompts get the same answer, but of some pods."""

    def __init__(self) -> None:
        self.known: dict[str, Figures] = {}
        self.looked: list[str] = []
        """Names of the pods that were asked for their figures, in order."""
        self.answer = Answer(200, "Paris")
        self.answers: dict[str, Answer] = {}
        """By pod name: another one than the others'."""
        self.asked: list[tuple[str, str, Any]] = []
        self.speed: LoadFigures | Answer = loaded(1.0)
        self.speeds: dict[str, LoadFigures | Answer] = {}
        """By pod name, or by an adapter's candidate: another one than the others'."""
        self.probed: list[tuple[str, str, Any]] = []

    async def ask(self, pod: Manifest, key: str, body: dict[str, Any]) -> Answer:
        self.asked.append((pod["metadata"]["name"], key, body))
        return self.answers.get(pod["metadata"]["name"], self.answer)

    async def probe(self, pod: Manifest, key: str, body: dict[str, Any]) -> LoadFigures | Answer:
        self.probed.append((pod["metadata"]["name"], key, body))
        named = (body.get("adapter"), pod["metadata"]["name"])
        return next((self.speeds[name] for name in named if name in self.speeds), self.speed)

    async def figures(self, pod: Manifest) -> Figures | None:
        self.looked.append(pod["metadata"]["name"])
        return self.known.get(pod["metadata"]["name"])


class Unconfined(Confined):
    """Does the children's work here: a process takes seconds to start where much else runs."""

    async def _run(self, task: dict[str, Any]) -> tuple[builtins.list[Any], bool]:
        return json.loads(json.dumps(builtins.list(work(task)))), True


class FixedConnections:
    """One connection that never changes."""

    def __init__(self) -> None:
        self.known = {"default": ConnectionSettings(tracking_uri=URI)}

    def current(self) -> dict[str, ConnectionSettings]:
        return self.known


class World:
    """Everything that a reconcile needs, and shortcuts for tests."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.registry = FakeRegistry()
        self.pods = FakePods()
        self.clock = Clock()
        self.connections = FixedConnections()
        self.outside = self.restarted(IMAGE)

    def restarted(self, image: str) -> Outside:
        """A new operator process, perhaps a newer one."""
        self.outside = Outside(
            self.cluster,
            self.registry,
            self.pods,
            self.connections,
            image,
            self.clock,
            confined=Unconfined(),
        )
        return self.outside

    async def deploy(self, name: str = "bot", **spec: Any) -> None:
        spec.setdefault("model", {"mlflow": {"name": "bot", "alias": "champion"}})
        await self.put("LLMDeployment", name, {"replicas": 1, **spec})

    async def put(
        self, kind: str, name: str, spec: Manifest, labels: dict[str, str] | None = None
    ) -> None:
        meta = {"name": name, "namespace": NAMESPACE, "labels": labels or {}}
        key = (kind, NAMESPACE, name)
        before = self.cluster.objects.get(key, {})
        made = {
            "apiVersion": crds.API_VERSION,
            "kind": kind,
            "metadata": {**before.get("metadata", {}), **meta},
        }
        if "status" in before:
            made["status"] = before["status"]
        self.cluster._store("person", key, {**made, "spec": spec})

    def status(self, name: str = "bot", kind: str = "LLMDeployment") -> Manifest:
        return dict(self.cluster.objects[kind, NAMESPACE, name].get("status", {}))

    def condition(self, kind: str, name: str = "bot", of: str = "LLMDeployment") -> Manifest:
        return next(c for c in self.status(name, of)["conditions"] if c["type"] == kind)

    def selected(self) -> str:
        service = self.cluster.objects["Service", NAMESPACE, "bot"]
        return str(service["spec"]["selector"]["llm-operator.dev/revision"])
