"""What the end-to-end tests do and see: kubectl, the registry, the endpoint."""

import time
from collections.abc import Callable
from typing import Any

from devstack.registry import set_alias
from devstack.stack import Stack

MODEL = "support-bot"
JUDGE_ADDRESS = "127.96.200.1"
"""Of a Service that a test makes in front of a judge's pods."""
JUDGE_URL = f"http://{JUDGE_ADDRESS}:8080/v1"


class World:
    """What the tests do and see: kubectl, the registry, the endpoint."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.kubectl = stack.cluster.kubectl

    def llmd(self, name: str = MODEL) -> dict[str, Any]:
        return self.stack.get("llmd", name)

    def condition(self, kind: str, name: str = MODEL) -> dict[str, Any]:
        found = [
            c for c in self.llmd(name).get("status", {}).get("conditions", []) if c["type"] == kind
        ]
        return found[0] if found else {"status": "absent", "reason": "", "message": ""}

    def until(self, holds: Callable[[], Any], what: str, timeout_seconds: float = 180) -> Any:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if result := holds():
                return result
            time.sleep(0.25)
        raise AssertionError(
            f"not within {timeout_seconds} s: {what}\n{self.kubectl('describe', 'llmd')}"
        )

    def serves(self, version: str) -> bool:
        status = self.llmd().get("status", {})
        return (
            status.get("stable", {}).get("version") == version
            and self.condition("Ready")["status"] == "True"
        )

    def alias(self, version: str, alias: str = "champion") -> None:
        set_alias(self.stack.mlflow.uri, MODEL, alias, version)

    def events(self) -> str:
        return self.kubectl(
            "get", "events", "-o", "custom-columns=REASON:.reason,MESSAGE:.message", "--no-headers"
        )
