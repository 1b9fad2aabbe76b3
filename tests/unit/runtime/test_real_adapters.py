"""A file, a registry, a real engine: adapters move while it generates,
and what runs ends on what it began with."""

import asyncio
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.adapters import AdapterList, Adapters  # noqa: E402
from llm_runtime.common.aside import in_thread  # noqa: E402
from llm_runtime.contract import (  # noqa: E402
    EngineConfig,
    MlflowVersion,
    ModelConfig,
    PinnedAdapter,
    RegistryAccess,
    RuntimeConfig,
)
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.fetching.fetch_adapter import AdapterFetcher  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling  # noqa: E402
from unit.runtime import lora_models  # noqa: E402
from unit.runtime.fetching.fakes import FolderRegistry  # noqa: E402
from waiting import until  # noqa: E402

PROMPT = tuple(range(40, 60))


def write(file: Path, *adapters: tuple[str, str]) -> None:
    entries = [{"name": name, "model": name, "version": version} for name, version in adapters]
    fresh = file.with_suffix(".new")
    fresh.write_text(
        json.dumps(
            {"connections": {"default": {"trackingUri": "http://mlflow"}}, "adapters": entries}
        )
    )
    fresh.replace(file)


async def tokens(engine: EngineClient, adapter: str, count: int = 16) -> list[int | None]:
    sampling = Sampling(max_tokens=count, temperature=0.0, ignore_eos=True)
    request = GenerationRequest(f"r-{adapter}", PROMPT, sampling, adapter=adapter)
    return [event.token_id async for event in engine.generate(request)]


async def test_versions_follow_the_file_while_the_engine_generates(tmp_path: Path) -> None:
    base = lora_models.llama(tmp_path / "base")
    for seed, version in enumerate(("1", "2")):
        lora_models.save_adapter(base, tmp_path / f"registry/legal/{version}", seed)
    other = lora_models.gpt2(tmp_path / "other")
    lora_models.save_adapter(other, tmp_path / "registry/legal/3", 5, "all-linear")
    config = RuntimeConfig(
        model=ModelConfig(name="bot", path=str(base)),
        engine=EngineConfig(device="cpu", max_model_length=256, kv_cache_bytes=1 << 22),
    )
    engine, _ = build_engine(config, base)

    async def fetch(adapter: PinnedAdapter, access: RegistryAccess) -> Path:
        version = MlflowVersion(
            tracking_uri=access.tracking_uri, name=adapter.model, version=adapter.version
        )
        registry = FolderRegistry(tmp_path / "registry" / adapter.model / adapter.version)
        return await in_thread(
            lambda: AdapterFetcher(registry, tmp_path / "models").fetch(version)
        )()

    file = tmp_path / "adapters.json"
    write(file, ("legal", "1"))
    try:
        async with Adapters(AdapterList(file), fetch, 4) as adapters:
            adapters.attach(engine)
            await adapters.settled()
            plain = await tokens(engine, "")
            first = await tokens(engine, "legal")
            running = asyncio.create_task(tokens(engine, "legal", 200))
            await asyncio.sleep(0.05)
            write(file, ("legal", "2"))
            await until(lambda: adapters.version("legal") == "2")
            second = await tokens(engine, "legal")
            assert (await running)[:16] == first
            assert len({tuple(plain), tuple(first), tuple(second)}) == 3
            write(file, ("legal", "3"))
            await until(lambda: adapters.report()[0]["state"] == "failed")
            assert adapters.report()[0]["reason"] == "ModelUnsupported"
            assert await tokens(engine, "legal") == second
            write(file)
            await until(lambda: engine.adapters == ())
            assert await tokens(engine, "") == plain
    finally:
        engine.close()
