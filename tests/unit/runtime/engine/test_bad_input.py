"""Bad input is refused by name, and whoever is served meanwhile gets exactly what he would have got
alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.errors import EngineFailed, InvalidRequest, NotFound, QueueFull  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling  # noqa: E402
from unit.runtime import lora_models, tiny_model  # noqa: E402

PROMPT = tuple(range(40, 90))
PLACES = 4
QUEUE = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineClient]:
    folder = tiny_model.make(tmp_path_factory.mktemp("tiny"))
    settings = EngineConfig(
        device="cpu", max_model_length=200, max_batch_size=PLACES, max_queue_length=QUEUE
    )
    running, _ = build_engine(
        RuntimeConfig(model=ModelConfig(name="tiny"), engine=settings), folder
    )
    yield running
    running.close()


def request(
    prompt: tuple[int, ...] = PROMPT, adapter: str = "", **sampling: Any
) -> GenerationRequest:
    options = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True, **sampling}
    return GenerationRequest("r", prompt, Sampling(**options), adapter=adapter)


async def answer(engine: EngineClient) -> list[int]:
    return [
        event.token_id async for event in engine.generate(request()) if event.token_id is not None
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (request(prompt=(1,) * 300), "maximum context length is 200 tokens"),
        (request(prompt=(1, 2, 99_999)), "token id 99999 is not in the model's vocabulary of 260"),
        (request(prompt=(1, -1)), "token id -1"),
        (request(prompt=()), "the prompt is empty"),
        (request(max_tokens=-5), "max_tokens must not be negative, as -5 is"),
        (request(stop=("x" * 10_000,)), "from 1 to 256 characters, not 10000"),
        (request(logit_bias=((260, 1.0),)), "logit_bias: token id 260"),
        (request(temperature=float("nan")), "temperature must be from 0 to 100"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_can_not_be_served_is_refused_and_changes_nothing(
    engine: EngineClient, wrong: GenerationRequest, words: str
) -> None:
    alone = await answer(engine)
    beside = asyncio.create_task(answer(engine))
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match=words):
        engine.generate(wrong)
    assert await beside == alone


async def test_an_unknown_adapter_and_one_of_another_base_are_refused(
    engine: EngineClient, tmp_path: Path
) -> None:
    alone = await answer(engine)
    other = lora_models.gpt2(tmp_path / "base")
    folder = lora_models.save_adapter(other, tmp_path / "adapter", 1, target_modules="all-linear")
    beside = asyncio.create_task(answer(engine))
    with pytest.raises(NotFound, match="no adapter"):
        engine.generate(request(adapter="legal"))
    with pytest.raises(EngineFailed, match="not one of this base model"):
        await engine.load_adapter("legal", folder)
    assert await beside == alone


async def test_of_ten_thousand_requests_at_once_the_first_are_served_and_the_rest_refused(
    engine: EngineClient,
) -> None:
    alone = await answer(engine)
    streams = []
    refused = 0
    for _ in range(10_000):
        try:
            streams.append(engine.generate(request()))
        except QueueFull:
            refused += 1
    assert (len(streams), refused) == (PLACES + QUEUE, 10_000 - PLACES - QUEUE)
    for stream in streams:
        assert [event.token_id async for event in stream if event.token_id is not None] == alone
