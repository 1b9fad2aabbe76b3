"""One container of a pod: its attempts, probes, back-off and orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from node import process as processes
from node import status
from node.api import Json
from node.backoff import Backoff
from node.paths import rewrite
from node.probes import ProbeState, Target, check, state_of
from node.process import Launch, Process
from node.resolve import ConfigError

CONFIG_RETRY_SECONDS = 2.0


class Host(Protocol):
    """What a container needs of its pod."""

    pod_ip: str

    async def prepare(self, container: Json) -> Launch: ...
    def mounts(self, container: Json) -> dict[str, str]: ...
    def publish(self) -> None: ...
    def event(self, kind: str, reason: str, message: str) -> None: ...


class Container:
    """`run` follows the restart policy until the container is done or `stop` is called."""

    def __init__(
        self, spec: Json, host: Host, folder: Path, pod_spec: Json, backoff: Backoff
    ) -> None:
        self.spec = spec
        self.host = host
        self.folder = folder
        self.backoff = backoff
        self.grace_seconds = float(pod_spec.get("terminationGracePeriodSeconds", 30))
        self.record = status.Record(
            spec["name"], spec["image"], sidecar=spec.get("restartPolicy") == "Always"
        )
        self.process: Process | None = None
        self.attempt = -1
        self.stopping = False
        self.begun = asyncio.Event()

    def log(self, previous: bool = False) -> Path:
        return self.folder / f"{self.attempt - previous}.log"

    async def run(self, policy: str) -> None:
        """Run attempts until `policy` (Always, OnFailure or Never) asks for no further one."""
        while not self.stopping:
            started = time.monotonic()
            await self.once()
            code = self.record.exit_code
            if self.stopping or policy == "Never" or (policy == "OnFailure" and code == 0):
                return
            await self.pause(self.backoff.next(time.monotonic() - started))
            self.record.restarts += 1

    async def pause(self, seconds: float) -> None:
        self.record.last_state = self.record.state
        if seconds:
            text = f"back-off {seconds:g}s restarting failed container={self.spec['name']}"
            self.record.state = status.waiting("CrashLoopBackOff", text)
            self.host.event("Warning", "BackOff", text)
            self.host.publish()
            await asyncio.sleep(seconds)

    async def once(self) -> None:
        """One attempt, from its configuration to its exit code."""
        launch = await self.configured()
        self.attempt += 1
        self.record.container_id = (
            f"process://{self.folder.parent.name}/{self.spec['name']}/{self.attempt}"
        )
        started = datetime.now(UTC)
        try:
            self.process = await Process.start(launch, self.log())
        except OSError as error:
            self.failed_to_start(started, str(error))
            return
        if self.stopping:  # asked to stop while it was starting
            await self.process.stop(2)
        self.record.state = {"running": {"startedAt": status.stamp(started)}}
        await self.follow(self.process, started)

    async def configured(self) -> Launch:
        while True:
            try:
                return await self.host.prepare(self.spec)
            except ConfigError as error:
                self.record.state = status.waiting("CreateContainerConfigError", str(error))
                self.host.event("Warning", "Failed", f"Error: {error}")
                self.host.publish()
                await asyncio.sleep(CONFIG_RETRY_SECONDS)

    def failed_to_start(self, started: datetime, message: str) -> None:
        self.record.state = status.terminated(
            128, started, datetime.now(UTC), message, self.record.container_id
        )
        self.record.state["terminated"]["reason"] = "StartError"
        self.host.event("Warning", "Failed", f"Error: {message}")
        self.host.publish()

    async def follow(self, process: Process, started: datetime) -> None:
        self.record.started = "startupProbe" not in self.spec
        if self.record.started:
            self.begin()
        self.record.ready = self.record.started and "readinessProbe" not in self.spec
        self.host.publish()
        probes = asyncio.create_task(self.probe(process))
        code = await process.wait()
        probes.cancel()
        policy = self.spec.get("terminationMessagePolicy", "File")
        words = processes.last_words(process.launch, process.log, policy, code != 0)
        self.record.ready = self.record.started = False
        self.record.state = status.terminated(
            code, started, datetime.now(UTC), words, self.record.container_id
        )
        self.host.publish()

    def begin(self) -> None:
        self.record.begun = True
        self.begun.set()

    async def probe(self, process: Process) -> None:
        """Startup first; then readiness and liveness side by side."""
        if probe := self.spec.get("startupProbe"):
            await self.repeat(
                probe, process, lambda verdict, text: self.on_startup(process, verdict, text)
            )
        checks = []
        if probe := self.spec.get("readinessProbe"):
            checks.append(self.repeat(probe, process, self.on_readiness))
        if probe := self.spec.get("livenessProbe"):
            checks.append(
                self.repeat(
                    probe, process, lambda verdict, text: self.on_liveness(process, verdict, text)
                )
            )
        await asyncio.gather(*checks)

    async def repeat(
        self, probe: Json, process: Process, tell: Callable[[bool | None, str], Awaitable[bool]]
    ) -> None:
        """Check every period until the attempt is over, or until `tell` returns True."""
        state: ProbeState = state_of(probe)
        await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
        while not process.over:
            passed, text = await check(probe, self.target(), float(probe.get("timeoutSeconds", 1)))
            if process.over or await tell(state.observe(passed), text):
                return
            await asyncio.sleep(float(probe.get("periodSeconds", 10)))

    async def on_startup(self, process: Process, verdict: bool | None, text: str) -> bool:
        if verdict is False:
            await self.restart(process, "startup", text)
        elif verdict:
            self.record.started = True
            self.begin()
            self.record.ready = "readinessProbe" not in self.spec
            self.host.publish()
        return verdict is True

    async def on_readiness(self, verdict: bool | None, text: str) -> bool:
        ready = bool(verdict) and not self.stopping
        if verdict is False:
            self.host.event("Warning", "Unhealthy", f"Readiness probe failed: {text}")
        if verdict is not None and ready != self.record.ready:
            self.record.ready = ready
            self.host.publish()
        return False

    async def on_liveness(self, process: Process, verdict: bool | None, text: str) -> bool:
        if verdict is False:
            await self.restart(process, "liveness", text)
        return False

    async def restart(self, process: Process, kind: str, text: str) -> None:
        name = self.spec["name"]
        self.host.event("Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {text}")
        self.host.event(
            "Normal", "Killing", f"Container {name} failed {kind} probe, will be restarted"
        )
        own = (self.spec.get(f"{kind}Probe") or {}).get("terminationGracePeriodSeconds")
        await self.end(
            process, time.monotonic() + float(own if own is not None else self.grace_seconds)
        )

    def target(self) -> Target:
        ports = {
            port["name"]: int(port["containerPort"])
            for port in self.spec.get("ports") or []
            if "name" in port
        }
        return Target(self.host.pod_ip, ports, self.execute)

    async def execute(self, command: list[str], seconds: float) -> tuple[int, str]:
        if self.process is None:
            return 1, "the container is not running"
        mounts = self.host.mounts(self.spec)
        return await processes.run(
            self.process.launch, [rewrite(word, mounts) for word in command], seconds
        )

    async def stop(self, deadline: float) -> None:
        """Start no further attempt, and end the running one by `deadline` (monotonic seconds)."""
        self.stopping = True
        self.record.ready = False
        if self.process is not None and not self.process.over:
            await self.end(self.process, deadline)

    async def end(self, process: Process, deadline: float) -> None:
        """Run preStop, then send SIGTERM, within the grace period.
        As with the kubelet, SIGTERM gets at least 2 s."""
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and not process.over:
            await self.pre_stop(hook, process, max(0.0, deadline - time.monotonic()))
        rest = deadline - time.monotonic()
        await process.stop(rest if rest > 2 or not hook else 2.0)

    async def pre_stop(self, hook: Json, process: Process, seconds: float) -> None:
        work = asyncio.create_task(self.hook(hook, seconds))
        gone = asyncio.create_task(process.handle.wait())
        await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def hook(self, hook: Json, seconds: float) -> None:
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
            return
        passed, text = await check(hook, self.target(), seconds)
        if not passed:
            self.host.event("Warning", "FailedPreStopHook", f"PreStopHook failed: {text}")
