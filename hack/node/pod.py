"""One pod's life: refuse or mount, initialise, run, report, and end within its grace period."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from node import refusals, status
from node.api import STRATEGIC, Api, ApiError, Json, insist
from node.backoff import Backoff
from node.container import Container
from node.expand import expand
from node.paths import rewrite
from node.process import Launch
from node.resolve import ConfigError, Sources, command_line, environment
from node.settings import Settings
from node.tokens import Tokens
from node.volumes import Volumes, client_config

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
HOST_IP = "127.0.0.1"
TERMINAL = ("Succeeded", "Failed")
Report = Callable[[Json, str, str, str], None]
log = logging.getLogger("node.pod")


class Pod:
    """A pod that is bound to this node. `update` takes its newest object, `terminate` ends it."""

    def __init__(
        self, manifest: Json, api: Api, settings: Settings, pod_ip: str, report: Report
    ) -> None:
        self.api = api
        self.settings = settings
        self.pod_ip = pod_ip
        self.report = report
        self.manifest = manifest
        self.uid: str = manifest["metadata"]["uid"]
        self.name = f"{manifest['metadata']['namespace']}/{manifest['metadata']['name']}"
        self.path = "/api/v1/namespaces/{namespace}/pods/{name}".format(**manifest["metadata"])
        self.folder = settings.folder / "pods" / self.uid
        spec = manifest["spec"]
        self.inits = [self.container(each) for each in spec.get("initContainers") or []]
        self.mains = [self.container(each) for each in spec["containers"]]
        self.sidecars = [each for each in self.inits if each.record.sidecar]
        self.beside: list[asyncio.Task[None]] = []
        self.volumes = Volumes(
            self.folder / "volumes", Tokens(api, manifest).get, settings.capacity()
        )
        self.places: dict[str, Path] = {}
        self.refused: str | None = None
        self.shutdown = False
        self.stopping = False
        self.deadline = float("inf")
        self.started_at = status.stamp(datetime.now(UTC))
        self.dirty = asyncio.Event()
        self.nudged = asyncio.Event()
        self.mounted = asyncio.Event()
        self.update(manifest)
        self.life = asyncio.create_task(self.live())
        self.publisher = asyncio.create_task(self.keep_publishing())
        self.refresher = asyncio.create_task(self.keep_fresh())

    def container(self, spec: Json) -> Container:
        backoff = Backoff(self.settings.backoff_seconds, self.settings.backoff_maximum_seconds)
        return Container(spec, self, self.folder / spec["name"], self.manifest["spec"], backoff)

    @property
    def ready(self) -> bool:
        """Whether Services may send new connections here."""
        lasting = [*self.sidecars, *self.mains]
        return not self.stopping and bool(self.mains) and all(each.record.ready for each in lasting)

    def update(self, manifest: Json) -> None:
        """Take the newest object;
        a change of labels, annotations or spec refreshes the volumes at once."""
        before = self.manifest
        for part in ("labels", "annotations"):
            if before["metadata"].get(part) != manifest["metadata"].get(part):
                self.nudged.set()
        known = (before.get("status") or {}).get("conditions") if before is not manifest else None
        self.manifest = manifest
        state = manifest.setdefault("status", {})
        state.update({"podIP": self.pod_ip, "hostIP": HOST_IP})
        if known and not state.get("conditions"):
            state["conditions"] = known
        if len(manifest["spec"].get("ephemeralContainers") or []) > len(
            before["spec"].get("ephemeralContainers") or []
        ):
            self.event(
                "Warning", "ProcessNodeUnsupported", "the process node runs no ephemeral containers"
            )

    async def live(self) -> None:
        """Run the pod up to the end of its last container."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if problem := refusals.refusal(self.manifest):
            self.refuse(problem)
            return
        if ignored := refusals.ignored(self.manifest):
            log.info("%s: accepted but not enforced here: %s", self.name, ", ".join(ignored))
        self.publish()
        await self.mount()
        policy = self.manifest["spec"].get("restartPolicy", "Always")
        if await self.initialise("Never" if policy == "Never" else "OnFailure"):
            await asyncio.gather(*(each.run(policy) for each in self.mains))
            await self.stop(self.sidecars)
        self.publish()

    def refuse(self, problem: str) -> None:
        self.refused = problem
        log.warning("%s refused: %s", self.name, problem)
        self.event("Warning", "ProcessNodeUnsupported", problem)
        self.publish()

    async def mount(self) -> None:
        """Mount the volumes before any container starts.
        Waits for missing objects, as the kubelet does."""
        while True:
            try:
                self.places = await self.volumes.mount(self.manifest, self.sources())
                self.mounted.set()
                return
            except (ConfigError, OSError) as error:
                self.event("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
                for each in self.inits or self.mains:
                    each.record.state = status.waiting("ContainerCreating")
                self.publish()
                await asyncio.sleep(1)

    async def initialise(self, policy: str) -> bool:
        """Run the init containers one after the other;
        sidecars stay. False if one failed for good."""
        for each in self.inits:
            if each.record.sidecar:
                self.beside.append(asyncio.create_task(each.run("Always")))
                await each.begun.wait()
                continue
            await each.run(policy)
            if each.record.exit_code != 0:
                return False
            each.record.ready = True
            self.publish()
        for each in self.mains:
            each.record.state = status.waiting("ContainerCreating")
        return True

    async def keep_fresh(self) -> None:
        """Refresh ConfigMaps, Secrets and tokens:
        at once after a change of the pod, else every `sync_seconds`.

        A change during the first mount triggers a refresh afterwards,
        because the mount may have used old content.
        """
        await self.mounted.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.sync_seconds):
                    await self.nudged.wait()
            self.nudged.clear()
            if self.stopping:
                continue
            try:
                self.places = await self.volumes.mount(self.manifest, self.sources())
            except (ConfigError, OSError) as error:
                self.event("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")

    def sources(self) -> Sources:
        return Sources(self.api, self.manifest["metadata"]["namespace"])

    def mounts(self, container: Json) -> dict[str, str]:
        """Mount path → real path, for one container."""
        found = {}
        for mount in container.get("volumeMounts") or []:
            place = self.places[mount["name"]]
            if mount.get("subPath"):
                place = place / mount["subPath"]
                if not place.exists():
                    place.mkdir(parents=True)
            found[mount["mountPath"]] = str(place)
        message = container.get("terminationMessagePath", "/dev/termination-log")
        return {**found, message: str(self.folder / container["name"] / "termination-log")}

    async def prepare(self, container: Json) -> Launch:
        """Resolve, expand and rewrite the container's spec. Raises ConfigError."""
        folder = self.folder / container["name"]
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        message = folder / "termination-log"
        message.unlink(missing_ok=True)
        mounts = self.mounts(container)
        variables = await environment(
            container, self.manifest, self.sources(), self.settings.capacity()
        )
        variables |= self.node_environment()
        final = self.settings.base_environment() | {
            name: rewrite(value, mounts) for name, value in variables.items()
        }
        final = {
            "HOME": str(work),
            "HOSTNAME": self.manifest["metadata"]["name"],
            **self.account(mounts),
            **final,
        }
        final["PATH"] = self.settings.search_path(variables.get("PATH"))
        start_in = working_folder(rewrite(container.get("workingDir") or "", mounts), work)
        return Launch(command_line(container, variables, mounts), final, start_in, message)

    def node_environment(self) -> dict[str, str]:
        own = {"POD_IP": self.pod_ip}
        return {name: expand(value, own) for name, value in self.settings.environment.items()}

    def account(self, mounts: dict[str, str]) -> dict[str, str]:
        """Set KUBECONFIG if the API server's admission mounted a service account token."""
        if ACCOUNT not in mounts:
            return {}
        file = self.folder / "kubeconfig"
        file.write_text(client_config(self.api.server, Path(mounts[ACCOUNT])))
        return {"KUBECONFIG": str(file)}

    def event(self, kind: str, reason: str, message: str) -> None:
        self.report(self.manifest, kind, reason, message)

    def publish(self) -> None:
        self.dirty.set()

    async def keep_publishing(self) -> None:
        while True:
            await self.dirty.wait()
            self.dirty.clear()
            await self.send()

    async def send(self) -> None:
        """Write the status. The uid in the patch keeps it off a later pod of the same name."""
        body = {"metadata": {"uid": self.uid}, "status": self.status()}
        try:
            answer = await insist(
                lambda: self.api.patch(f"{self.path}/status", body, STRATEGIC), ignore=(404, 409)
            )
        except ApiError as error:
            log.error("%s: status refused: %s", self.name, error)
            return
        if answer is not None:
            self.manifest["status"]["conditions"] = answer["status"].get("conditions")

    def status(self) -> Json:
        if self.refused:
            return {"phase": "Failed", "reason": "ProcessNodeUnsupported", "message": self.refused}
        inits = [each.record for each in self.inits]
        mains = [each.record for each in self.mains]
        spec = self.manifest["spec"]
        now = datetime.now(UTC)
        phase = status.phase(
            inits, mains, "Never" if self.stopping else spec.get("restartPolicy", "Always")
        )
        result: Json = {
            "phase": phase,
            "conditions": status.conditions(self.manifest, inits, mains, phase, now),
            "hostIP": HOST_IP,
            "hostIPs": [{"ip": HOST_IP}],
            "podIP": self.pod_ip,
            "podIPs": [{"ip": self.pod_ip}],
            "startTime": self.started_at,
            "initContainerStatuses": [record.as_status() for record in inits],
            "containerStatuses": [record.as_status() for record in mains],
        }
        if self.shutdown:
            result |= {
                "phase": "Failed",
                "reason": "Terminated",
                "message": "the process node was shut down",
            }
        return result

    async def terminate(
        self, seconds: float, after: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """End all containers within the grace period, report it, then do `after`.
        A second call can only hasten it."""
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        if self.stopping:
            self.hasten()
            return
        self.stopping = True
        self.publish()
        await self.stop([each for each in [*self.inits, *self.mains] if not each.record.sidecar])
        await self.stop(self.sidecars)
        ran = any(each.process for each in [*self.inits, *self.mains])
        await asyncio.wait({self.life}, timeout=0.5 if ran else 0.0)
        for task in (self.life, self.refresher, self.publisher, *self.beside):
            task.cancel()
        await self.send()
        if after is not None:
            await after()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def stop(self, containers: list[Container]) -> None:
        """End these within what is left of the grace period;
        where the pod ends by itself, within all of it."""
        grace = float(self.manifest["spec"].get("terminationGracePeriodSeconds", 30))
        deadline = self.deadline if self.stopping else time.monotonic() + grace
        await asyncio.gather(*(each.stop(deadline) for each in containers))

    def hasten(self) -> None:
        """Kill the remaining processes at the deadline, after the grace period was shortened."""

        async def kill() -> None:
            await asyncio.sleep(max(0.0, self.deadline - time.monotonic()))
            for each in [*self.inits, *self.mains]:
                if each.process is not None and not each.process.over:
                    await each.process.stop(0.01)

        self.killer = asyncio.create_task(kill())


def working_folder(wanted: str, default: Path) -> Path:
    """workingDir if it exists on this machine. Folders of images do not."""
    return Path(wanted) if wanted and Path(wanted).is_dir() else default
