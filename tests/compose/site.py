"""The compose stack as its tests meet it."""

import os
from pathlib import Path

import httpx

from kindstack.compose import Stack

MODEL = "support-bot"


class Site:
    """The stack as docs/compose.md starts it, with a client of the runtime."""

    def __init__(self, stack: Stack, models: Path) -> None:
        self.stack = stack
        self.models = models
        key = {"Authorization": f"Bearer {stack.settings['API_KEY']}"}
        self.runtime = httpx.Client(
            base_url=stack.url("RUNTIME_PORT"), headers=key, timeout=60, trust_env=False
        )
        self.prometheus = httpx.Client(
            base_url=stack.url("PROMETHEUS_PORT"), timeout=60, trust_env=False
        )

    def push(self, folder: str) -> str:
        """What the documented command prints."""
        options = ("--user", str(os.getuid()), "--volume", f"{self.models / folder}:/model:ro")
        return self.stack(
            "run", "--rm", "--no-deps", *options, "runtime", "push", "/model", "--name", MODEL
        )

    def key(self, name: str, *options: str) -> dict[str, str]:
        """Headers with a new key, made as docs/compose.md says."""
        command = ("python", "-m", "llm_runtime", "keys", "create", name, *options)
        return {
            "Authorization": f"Bearer {self.stack('exec', '--no-TTY', 'runtime', *command).strip()}"
        }

    def ask(
        self, text: str = "Hello", headers: dict[str, str] | None = None, **more: object
    ) -> httpx.Response:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 16,
            **more,
        }
        return self.runtime.post("/v1/chat/completions", json=body, headers=headers)

    def serves(self) -> bool:
        try:
            return self.ask().status_code == 200
        except httpx.TransportError:
            return False

    def rows(self) -> int:
        """Requests in the usage log."""
        query = (
            "psql",
            "--username=llm",
            "--dbname=llm",
            "-tAc",
            "SELECT count(*) FROM inference_log",
        )
        return int(self.stack("exec", "--no-TTY", "postgres", *query))

    def query(self, expression: str) -> list[dict[str, object]]:
        """What Prometheus answers now. Raises where it refuses the expression."""
        answer = self.prometheus.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return list(answer.json()["data"]["result"])
