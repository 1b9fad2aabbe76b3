"""The Node object, its heartbeat, and the pods bound to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import platform
import random
from collections.abc import Coroutine
from datetime import UTC, datetime

from node.api import STRATEGIC, Api, ApiError, Json, Mirror, insist
from node.pod import HOST_IP, TERMINAL, Pod
from node.settings import Settings
from node.status import stamp

HEARTBEAT_SECONDS = 10
LAST_WORDS_SECONDS = 10.0
"""Time limit for reporting the ended pods to the API server when the node stops."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
log = logging.getLogger("node")


class Node:
    """Registers itself and runs what the scheduler binds to it."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self.api = api
        self.settings = settings
        self.path = f"/api/v1/nodes/{settings.name}"
        self.pods: dict[str, Pod] = {}
        self.mirror = Mirror(
            api, "/api/v1/pods", self.changed, fieldSelector=f"spec.nodeName={settings.name}"
        )
        self.tasks: set[asyncio.Task[object]] = set()
        self.reported: dict[str, str] = {}
        self.closing = False

    def spawn(self, work: Coroutine[object, object, object]) -> None:
        """Run in the background. The task is stored, because asyncio keeps only weak references."""
        task: asyncio.Task[object] = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.finished)

    def finished(self, task: asyncio.Task[object]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a background task failed", exc_info=error)

    async def register(self, kubelet_port: int) -> None:
        """Create the Node, or take over the one of an earlier life, and set it Ready."""
        await insist(lambda: self.api.post("/api/v1/nodes", manifest(self.settings)), ignore=(409,))
        # An earlier run may have been killed during its shutdown, and left the node cordoned.
        await insist(lambda: self.api.patch(self.path, {"spec": {"unschedulable": None}}))
        await self.report_ready(kubelet_port)
        self.spawn(self.mirror.run())
        self.spawn(self.beat(kubelet_port))

    async def report_ready(self, kubelet_port: int) -> None:
        body = {"status": ready(self.settings, kubelet_port)}
        await insist(lambda: self.api.patch(f"{self.path}/status", body, STRATEGIC))

    async def beat(self, kubelet_port: int) -> None:
        """Renew the Lease every ten seconds.
        Also report the status, in case the API server has lost its data."""
        while True:
            try:
                await self.renew()
                await self.report_ready(kubelet_port)
            except ApiError as error:
                log.warning("heartbeat: %s", error)
                if error.status == 404:
                    await insist(
                        lambda: self.api.post("/api/v1/nodes", manifest(self.settings)),
                        ignore=(409,),
                    )
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def renew(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self.settings.name, "leaseDurationSeconds": 40, "renewTime": now}
        try:
            await self.api.patch(f"{LEASES}/{self.settings.name}", {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
            await self.api.post(LEASES, {**lease, "metadata": {"name": self.settings.name}})

    def changed(self, key: str, manifest: Json | None) -> None:
        """A pod came, changed or went."""
        pod = self.pods.get(key)
        if pod is not None and (manifest is None or manifest["metadata"]["uid"] != pod.uid):
            # Force-deleted, or replaced by a pod of the same name.
            # The kubelet also uses a short grace period then.
            self.spawn(self.end(key, pod, 1.0, delete=False))
            self.pods.pop(key, None)
            pod = None
        if manifest is None:
            return
        if pod is None:
            pod = self.admit(key, manifest)
        if pod is not None:
            pod.update(manifest)
            if manifest["metadata"].get("deletionTimestamp"):
                grace = float(manifest["metadata"].get("deletionGracePeriodSeconds") or 0)
                self.spawn(self.end(key, pod, grace, delete=True))

    def admit(self, key: str, manifest: Json) -> Pod | None:
        if self.closing:
            return None
        if (manifest.get("status") or {}).get("phase") in TERMINAL:
            if manifest["metadata"].get("deletionTimestamp"):
                self.spawn(self.remove(manifest))
            return None
        log.info("%s: starting", key)
        pod = Pod(manifest, self.api, self.settings, self.address(manifest), self.event)
        self.pods[key] = pod
        return pod

    def address(self, manifest: Json) -> str:
        """An unused loopback address.
        It is random, so that two clusters on one machine rarely collide."""
        taken = {pod.pod_ip for pod in self.pods.values()}
        # A pod of an earlier run keeps its address,
        # because the API merges podIPs and refuses a second one.
        former = str((manifest.get("status") or {}).get("podIP", ""))
        if former and former not in taken:
            return former
        while True:
            address = (
                f"127.{random.randint(10, 63)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
            )
            if address not in taken:
                return address

    async def end(self, key: str, pod: Pod, seconds: float, *, delete: bool) -> None:
        log.info("%s: stopping within %g s", key, seconds)

        async def after() -> None:
            if delete:
                await self.remove(pod.manifest)

        await pod.terminate(seconds, after)

    async def remove(self, manifest: Json) -> None:
        """Delete the pod's object after its processes have ended, as the kubelet does."""
        metadata = manifest["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        await insist(lambda: self.api.delete(path, options), ignore=(404, 409))
        key = f"{metadata['namespace']}/{metadata['name']}"
        if key in self.pods and self.pods[key].uid == metadata["uid"]:
            self.pods.pop(key)

    async def stop(self) -> None:
        """End every pod and leave the cluster.
        Pods become Failed, so that their owners replace them."""
        await self.cordon()
        for pod in self.pods.values():
            pod.shutdown = True
        graces = [
            float(pod.manifest["spec"].get("terminationGracePeriodSeconds", 30))
            for pod in self.pods.values()
        ]
        ending = [
            pod.terminate(grace) for pod, grace in zip(self.pods.values(), graces, strict=True)
        ]
        # Processes end within the grace period.
        # The rest is for the reports, if the API server still answers.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(graces, default=0.0) + LAST_WORDS_SECONDS):
                await asyncio.gather(*ending, return_exceptions=True)
        for task in list(self.tasks):
            task.cancel()
        for path in (self.path, f"{LEASES}/{self.settings.name}"):
            try:
                await self.api.delete(path)
            except ApiError as error:
                log.warning("cannot delete %s: %s", path, error)

    async def cordon(self) -> None:
        """Accept no more pods, because replacements of the ending ones could be scheduled here."""
        self.closing = True
        with contextlib.suppress(ApiError):
            await self.api.patch(self.path, {"spec": {"unschedulable": True}})

    def event(self, manifest: Json, kind: str, reason: str, message: str) -> None:
        """Send an Event about a pod or Service, unless it equals the last one about it."""
        uid = manifest["metadata"]["uid"]
        digest = f"{reason}: {message}"
        if self.reported.get(uid) != digest:
            self.reported[uid] = digest
            self.spawn(self.send_event(manifest, kind, reason, message))

    async def send_event(self, manifest: Json, kind: str, reason: str, message: str) -> None:
        try:
            body = event_object(manifest, kind, reason, message, self.settings.name)
            await self.api.post(
                f"/api/v1/namespaces/{manifest['metadata']['namespace']}/events", body
            )
        except ApiError as error:
            log.warning("event %s of %s: %s", reason, manifest["metadata"]["name"], error)


def manifest(settings: Settings) -> Json:
    labels = {
        "kubernetes.io/hostname": settings.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": (
            {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        ),
        "llm-operator.dev/process-node": "true",
    }
    taints = [taint(text) for text in settings.taints]
    return {"metadata": {"name": settings.name, "labels": labels}, "spec": {"taints": taints}}


def taint(text: str) -> Json:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "value": value, "effect": effect}


def ready(settings: Settings, kubelet_port: int) -> Json:
    now = stamp(datetime.now(UTC))
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "ProcessNodeReady",
        "message": "runs pods as processes",
    }
    return {
        "capacity": settings.capacity(),
        "allocatable": settings.capacity(),
        "conditions": [{**condition, "lastHeartbeatTime": now}],
        "addresses": [
            {"type": "InternalIP", "address": HOST_IP},
            {"type": "Hostname", "address": settings.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        "nodeInfo": {
            "kubeletVersion": "v1.36.0-process-node",
            "operatingSystem": "linux",
            "architecture": "any",
        },
    }


def event_object(manifest: Json, kind: str, reason: str, message: str, host: str) -> Json:
    metadata = manifest["metadata"]
    now = stamp(datetime.now(UTC))
    unique = hashlib.sha256(
        f"{metadata['uid']}{reason}{message}{datetime.now(UTC)}".encode()
    ).hexdigest()[:16]
    involved = {"kind": manifest.get("kind", "Pod"), "apiVersion": "v1", "uid": metadata["uid"]}
    return {
        "metadata": {"name": f"{metadata['name']}.{unique}", "namespace": metadata["namespace"]},
        "involvedObject": {
            **involved,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
        },
        "type": kind,
        "reason": reason,
        "message": message[:1000],
        "source": {"component": "process-node", "host": host},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
