"""Two real models in one engine's process, one after the other:
each request is answered by the weights it began on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.engine.process import start_engine  # noqa: E402
from llm_runtime.errors import EngineFailed  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling, TokenEvent  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.engine.fakes import text_of  # noqa: E402

CONFIG = RuntimeConfig(
    model=ModelConfig(name="tiny"),
    engine=EngineConfig(device="cpu", max_model_length=400, max_batch_size=4),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return tiny_model.make(root / "first", seed=1), tiny_model.make(root / "second", seed=2)


@pytest.fixture
async def first(folders: tuple[Path, Path]) -> AsyncIterator[EngineClient]:
    client = await start_engine(CONFIG, folders[0])
    yield client
    await asyncio.to_thread(client.close)


async def say(client: EngineClient, max_tokens: int) -> list[TokenEvent]:
    prompt = tuple(client.codec.encode("once upon a time"))
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return [event async for event in client.generate(GenerationRequest("r", prompt, sampling))]


async def test_each_stream_ends_on_the_weights_it_began_on(
    first: EngineClient, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = text_of(await say(first, 380))
    with pytest.raises(EngineFailed) as failed:
        await first.swap(CONFIG, tmp_path)  # No model there: the old one serves on.
    assert failed.value.reason in ("ModelCorrupt", "ModelUnsupported", "ModelNotFound")
    swap = asyncio.create_task(first.swap(CONFIG, folders[1]))
    during: list[str] = []
    while not swap.done():
        during.append(text_of(await say(first, 380)))
    running = asyncio.create_task(say(first, 380))
    await asyncio.sleep(0)
    second = await swap
    fresh = text_of(await say(second, 100))
    assert text_of(await running) == alone
    assert during
    assert set(during) == {alone}
    assert fresh != alone[: len(fresh)]
    assert text_of(await say(second, 100)) == fresh
