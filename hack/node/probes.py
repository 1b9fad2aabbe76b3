"""Probes: a pure state machine, and a check for each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from node.api import Json

Execute = Callable[[list[str], float], Awaitable[tuple[int, str]]]


@dataclass
class ProbeState:
    """Turns results into a verdict, which changes only after enough equal results in a row."""

    failure_threshold: int = 3
    success_threshold: int = 1
    verdict: bool | None = None
    _last: bool | None = field(default=None, init=False)
    _count: int = field(default=0, init=False)

    def observe(self, success: bool) -> bool | None:
        """Add a result and return the verdict: True, False, or None if there is none yet."""
        self._count = self._count + 1 if success == self._last else 1
        self._last = success
        if self._count >= (self.success_threshold if success else self.failure_threshold):
            self.verdict = success
        return self.verdict


@dataclass(frozen=True)
class Target:
    """What a check needs of its container."""

    pod_ip: str
    ports: dict[str, int]
    execute: Execute

    def port(self, value: int | str) -> int:
        return self.ports[value] if isinstance(value, str) and value in self.ports else int(value)


def state_of(probe: Json) -> ProbeState:
    return ProbeState(int(probe.get("failureThreshold", 3)), int(probe.get("successThreshold", 1)))


async def check(handler: Json, target: Target, timeout_seconds: float) -> tuple[bool, str]:
    """Run one probe or hook handler. Never raises: a failure is its second value."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if "httpGet" in handler:
                return await http_get(handler["httpGet"], target)
            if "tcpSocket" in handler:
                return await tcp_socket(handler["tcpSocket"], target)
            if "exec" in handler:
                code, output = await target.execute(handler["exec"]["command"], timeout_seconds)
                return code == 0, output or f"exit code {code}"
            return (
                False,
                f"the process node knows httpGet, tcpSocket and exec, not {', '.join(handler)}",
            )
    except TimeoutError:
        return False, f"no answer within {timeout_seconds:g} s"
    except (OSError, aiohttp.ClientError, ValueError) as error:
        return False, str(error) or type(error).__name__


async def http_get(action: Json, target: Target) -> tuple[bool, str]:
    scheme = action.get("scheme", "HTTP").lower()
    url = f"{scheme}://{action.get('host') or target.pod_ip}:{target.port(action['port'])}{action.get('path', '/')}"
    headers = {
        "User-Agent": "kube-probe/1.36",
        **{h["name"]: h["value"] for h in action.get("httpHeaders") or []},
    }
    async with (
        aiohttp.ClientSession(headers=headers, trust_env=False) as session,
        session.get(url, ssl=False, allow_redirects=False) as answer,
    ):
        body = (await answer.content.read(512)).decode(errors="replace")
        return (
            200 <= answer.status < 400,
            f"HTTP probe failed with statuscode: {answer.status}: {body}",
        )


async def tcp_socket(action: Json, target: Target) -> tuple[bool, str]:
    _, writer = await asyncio.open_connection(
        action.get("host") or target.pod_ip, target.port(action["port"])
    )
    writer.close()
    return True, ""
