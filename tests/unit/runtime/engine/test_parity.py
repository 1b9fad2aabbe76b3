"""The whole engine on a random two-layer Llama:
the same tokens as `model.generate`, whatever the batch does."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute.logits import scores  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling, TokenEvent  # noqa: E402
from llm_runtime.text.codec import Codec  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402

Built = tuple[EngineClient, Codec]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def built(folder: Path) -> Iterator[Built]:
    settings = EngineConfig(
        device="cpu", max_model_length=400, max_batch_size=12, max_batch_tokens=48
    )
    engine, codec = build_engine(
        RuntimeConfig(model=ModelConfig(name="tiny"), engine=settings), folder
    )
    yield engine, codec
    engine.close()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generated(reference: Any, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
        )
    return list(out[0, len(prompt) :].tolist())


async def answer(built: Built, prompt: tuple[int, ...], **sampling: Any) -> list[TokenEvent]:
    return [
        event
        async for event in built[0].generate(GenerationRequest("r", prompt, Sampling(**sampling)))
    ]


def ids(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


def prompts(codec: Codec, count: int, seed: int = 3) -> list[tuple[int, ...]]:
    chance = random.Random(seed)
    size = codec.vocabulary_size
    return [
        tuple(chance.randrange(size) for _ in range(chance.choice((1, 2, 17, 48, 49, 130))))
        for _ in range(count)
    ]


async def test_32_at_once_in_12_slots_and_chunks_say_what_generate_says(
    built: Built, reference: Any
) -> None:
    asked = prompts(built[1], 32)
    lengths = [3 + 5 * i % 60 for i in range(32)]
    answers = await asyncio.gather(
        *(
            answer(built, prompt, max_tokens=n, temperature=0.0)
            for prompt, n in zip(asked, lengths, strict=True)
        )
    )
    for prompt, length, events in zip(asked, lengths, answers, strict=True):
        expected = generated(reference, prompt, length)
        assert ids(events) == expected
        assert "".join(event.text for event in events) == built[1].decode(expected)


async def test_cancelling_neighbours_changes_no_answer(built: Built, reference: Any) -> None:
    asked = prompts(built[1], 16, seed=4)

    async def leave_early(prompt: tuple[int, ...], after: int) -> None:
        stream: Any = built[0].generate(
            GenerationRequest("r", prompt, Sampling(max_tokens=100, temperature=0.0))
        )
        async for _ in stream:
            after -= 1
            if after <= 0:
                break
        await stream.aclose()

    stay = [answer(built, prompt, max_tokens=40, temperature=0.0) for prompt in asked[::2]]
    leave = [leave_early(prompt, 1 + i) for i, prompt in enumerate(asked[1::2])]
    answers, _ = await asyncio.gather(asyncio.gather(*stay), asyncio.gather(*leave))
    for prompt, events in zip(asked[::2], answers, strict=True):
        assert ids(events) == generated(reference, prompt, 40)


async def test_a_seeded_request_says_the_same_alone_and_in_a_crowd(built: Built) -> None:
    prompt, *others = prompts(built[1], 20, seed=5)
    options = {"max_tokens": 30, "temperature": 0.9, "top_p": 0.9, "seed": 11}
    alone = ids(await answer(built, prompt, **options))
    crowd = await asyncio.gather(
        answer(built, prompt, **options),
        *(answer(built, other, max_tokens=30, temperature=1.0) for other in others),
    )
    assert ids(crowd[0]) == alone


async def test_log_probabilities_are_those_of_the_model(built: Built, reference: Any) -> None:
    prompt = prompts(built[1], 1, seed=6)[0]
    events = await answer(
        built, prompt, max_tokens=10, temperature=0.0, logprobs=3, ignore_eos=True
    )
    sequence = torch.tensor([[*prompt, *ids(events)]])
    with torch.inference_mode():
        expected = reference(sequence).logits[0].log_softmax(-1)
    for index, event in enumerate(events):
        row = expected[len(prompt) - 1 + index]
        assert event.logprob == pytest.approx(float(row[event.token_id]), abs=1e-3)
        assert [top.token_id for top in event.top_logprobs] == row.topk(3).indices.tolist()


async def test_prompts_are_as_probable_as_to_the_model_in_chunks_in_a_crowd_and_cached_or_not(
    built: Built, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "SLICE_BYTES", 11 * 4 * built[1].vocabulary_size)
    asked = [*prompts(built[1], 12, seed=7), tuple(range(200))]
    options: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    await answer(built, asked[-1], max_tokens=1, **options)  # From now on its beginning is cached.
    crowd = [
        answer(built, prompt, max_tokens=n % 3, prompt_logprobs=2, **options)
        for n, prompt in enumerate(asked)
    ]
    beside = [answer(built, prompt, max_tokens=20, **options) for prompt in asked]
    answers, others = await asyncio.gather(asyncio.gather(*crowd), asyncio.gather(*beside))
    for number, (prompt, events, plain) in enumerate(zip(asked, answers, others, strict=True)):
        assert ids(events) == ids(plain)[: number % 3]
        found = events[0].prompt_logprobs
        assert found
        assert tuple(found.token_ids) == prompt
        assert [event.prompt_logprobs for event in events[1:]] == [None] * (len(events) - 1)
        with torch.inference_mode():
            expected = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
        for place, (token, logprob, rank, rivals) in enumerate(found):
            row = expected[place]
            own = row[token]
            assert token == prompt[place + 1]
            assert logprob == pytest.approx(float(own), abs=1e-4)
            # Among so many tokens some are as probable as each other up to rounding.
            assert (row > own + 1e-4).sum() < rank <= (row > own - 1e-4).sum()
            best = row.topk(2).values.tolist()
            assert [value for _, value in rivals] == pytest.approx(best, abs=1e-4)
            assert [float(row[rival]) for rival, _ in rivals] == pytest.approx(best, abs=1e-4)
        assert len(list(found)) == len(prompt) - 1
