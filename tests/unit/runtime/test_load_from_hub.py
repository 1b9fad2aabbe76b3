"""`POST /load_model` of a hub's model, whole:
a stand-in hub, a real download and a real tiny model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from control_plane.hub import COMMIT, REPOSITORY, TOKEN, hub  # noqa: E402
from harness import Rows, chat_body  # noqa: E402
from llm_runtime import __main__ as runtime  # noqa: E402
from llm_runtime.api.access import Management  # noqa: E402
from llm_runtime.api.server import Server, make_server  # noqa: E402
from llm_runtime.api.serving import State, WarmModel  # noqa: E402
from llm_runtime.app import create_app  # noqa: E402
from llm_runtime.auth.callers import KeyChain, SingleKey  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from waiting import until  # noqa: E402

ADMIN = {"X-API-Key": "the-admins-key"}
NAME = f"{REPOSITORY}@{COMMIT}"


@asynccontextmanager
async def serving(
    folder: Path, models: Path
) -> AsyncIterator[tuple[Server, Rows, httpx.AsyncClient]]:
    """The model of `folder`, on an engine in this process."""
    config = RuntimeConfig(
        model=ModelConfig(name="first", path=str(folder)),
        engine=EngineConfig(device="cpu", max_model_length=256, kv_cache_bytes=1 << 22),
        authentication="Disabled",
    )
    source = runtime._models(models)

    async def start(config: RuntimeConfig, folder: Path) -> WarmModel:
        engine, _ = await asyncio.to_thread(build_engine, config, folder)
        return runtime._loaded(engine, folder)

    management = Management(
        KeyChain(SingleKey(ADMIN["X-API-Key"], admin=True)), None, source.fetch, start
    )
    rows = Rows()
    server = make_server(config, lambda: start(config, folder), usage=rows, management=management)
    app = create_app(server)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN) as client,
    ):
        await until(lambda: server.serving.state is State.READY)
        yield server, rows, client


async def says(client: httpx.AsyncClient, model: str) -> Any:
    answer = await client.post("/v1/chat/completions", json=chat_body(model=model, max_tokens=4))
    return answer.json() if answer.is_success else answer.status_code


async def test_a_private_model_is_downloaded_beside_what_serves_and_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("HF_TOKEN", "HUGGINGFACE_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    first = tiny_model.make(tmp_path / "first", 0)
    second = tiny_model.make(tmp_path / "second", 1)
    with hub(second, bytes_per_second=1 << 19) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        async with serving(first, tmp_path / "models") as (server, rows, client):
            refused = await client.post("/load_model", json={"model_name": NAME})
            assert (refused.status_code, refused.json()["details"]["code"]) == (
                400,
                "RegistryDenied",
            )
            assert "hf_token" in refused.json()["message"]
            asked = {"model_name": NAME, "hf_token": TOKEN}
            coming = asyncio.create_task(client.post("/load_model", json=asked))
            await until(
                lambda: bool(
                    server.serving.arrival and server.serving.arrival.report().get("bytes")
                )
            )
            far = (await client.get("/status")).json()["loading"]
            assert (
                0
                < far["bytes"]
                <= far["total_bytes"]
                == sum(file.stat().st_size for file in second.iterdir())
            )
            assert await says(client, "first") != 404
            loaded = await coming
            assert (loaded.status_code, loaded.json()["model_version"]) == (200, COMMIT)
            answer = await says(client, REPOSITORY)
            assert answer["system_fingerprint"] == f"{REPOSITORY}-v{COMMIT}"
            assert await says(client, "first") == 404
            assert (rows[-1].model, rows[-1].model_version) == (REPOSITORY, COMMIT)
            assert (await client.get(f"/v1/models/{REPOSITORY}")).status_code == 200
    assert TOKEN not in caplog.text
    kept = [file.read_bytes() for file in (tmp_path / "models").rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in content for content in kept)


async def test_a_broken_model_of_the_hub_leaves_what_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_model.make(tmp_path / "first", 0)
    second = tiny_model.make(tmp_path / "second", 1)
    weights = second / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with hub(second, bytes_per_second=1e9) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        async with serving(first, tmp_path / "models") as (_, _, client):
            failed = await client.post("/load_model", json={"model_name": NAME, "hf_token": TOKEN})
            assert (failed.status_code, failed.json()["details"]["code"]) == (400, "ModelCorrupt")
            assert (await says(client, "first"))["choices"]
            assert (await client.get("/status")).json()["loading"] is None
