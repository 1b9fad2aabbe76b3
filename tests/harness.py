"""What the runtime's API tests share: keys, configuration,
and a handle on a running application."""

import json
from typing import Any

import httpx

from fakes import ScriptedEngine
from llm_runtime.api.server import Server
from llm_runtime.contract import (
    KeyFile,
    KeyRecord,
    MlflowVersion,
    ModelConfig,
    RuntimeConfig,
    ServerConfig,
    format_key,
    hash_key,
)
from llm_runtime.usage import UsageRow

KEY = format_key("web", "x" * 43)
SUSPENDED = format_key("held", "y" * 43)
EXPIRED = format_key("old", "z" * 43)
SALT = "pepper"


class Rows(list[UsageRow]):
    """A usage log that keeps its rows."""

    def write(self, row: UsageRow) -> None:
        self.append(row)


class Harness:
    """A running application and everything a test may want to look at."""

    def __init__(
        self,
        server: Server,
        engine: ScriptedEngine,
        rows: Rows,
        url: str,
        client: httpx.AsyncClient,
    ) -> None:
        self.server = server
        self.engine = engine
        self.rows = rows
        self.url = url
        self.client = client

    def put(self, **parts: Any) -> None:
        """Replace parts of the server that runs, which are fixed outside tests."""
        for name, part in parts.items():
            object.__setattr__(self.server, name, part)

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat_body(**fields))

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.client.post(
            "/v1/completions", json={"model": "support-bot", "prompt": "a b", **fields}
        )


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "support-bot", "messages": [{"role": "user", "content": "hi you"}], **fields}


def config(server: ServerConfig | None = None, system_prompt: str = "") -> RuntimeConfig:
    version = MlflowVersion(tracking_uri="http://mlflow", name="support-bot", version="3")
    model = ModelConfig(name="support-bot", mlflow=version, system_prompt=system_prompt)
    return RuntimeConfig(model=model, server=server or ServerConfig())


def key_file(*records: KeyRecord) -> str:
    return KeyFile(salt=SALT, keys=records).model_dump_json(by_alias=True)


def record(key: str, **fields: Any) -> KeyRecord:
    return KeyRecord(id=key.split("_")[1], digest=hash_key(key, SALT), name="default/web", **fields)


def events(text: str) -> list[Any]:
    """The data of server-sent events, `[DONE]` as it is."""
    datas = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]
