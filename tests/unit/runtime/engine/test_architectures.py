"""Every architecture of the matrix says what `model.generate` says, and finds a prompt as probable as
the model itself, whichever runner serves it."""

import asyncio
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute.logits import scores  # noqa: E402
from llm_runtime.compute.lora import Adapter, AdapterSet, LoraWeights  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.engine.adapters import AdapterTable  # noqa: E402
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.engine.drafts import Drafter  # noqa: E402
from llm_runtime.engine.limits import RequestLimits  # noqa: E402
from llm_runtime.engine.local import start_local  # noqa: E402
from llm_runtime.engine.model import Model  # noqa: E402
from llm_runtime.engine.scheduler import Scheduler  # noqa: E402
from llm_runtime.errors import ModelUnsupported  # noqa: E402
from llm_runtime.loading import build  # noqa: E402
from llm_runtime.loading.adapter import AdapterReader  # noqa: E402
from llm_runtime.loading.load import load  # noqa: E402
from llm_runtime.loading.loaded import Loaded  # noqa: E402
from llm_runtime.loading.runners import Chosen, choose_runner  # noqa: E402
from llm_runtime.request import GenerationRequest, Sampling  # noqa: E402
from unit.runtime.engine.architectures import (  # noqa: E402
    ARCHITECTURES,
    BATCHED,
    VOCABULARY,
    WINDOW,
    Architecture,
    table,
)

SETTINGS = EngineConfig(device="cpu", max_model_length=96, max_batch_size=4, max_batch_tokens=16)
MODEL = ModelConfig(name="random")
LENGTHS = (1, 2, WINDOW - 1, WINDOW + 1, 17, 30, 40, 70)
MAX_TOKENS = 10

Prompt = tuple[int, ...]
Answers = dict[Prompt, list[int]]


@dataclass(frozen=True)
class Expected:
    """A model folder, and what Transformers generates with it:
    as it is, and with an adapter merged into it."""

    folder: Path
    answers: Answers
    scores: list[float]
    """Log probabilities of the longest prompt's tokens."""
    adapter: Adapter
    adapted: Answers
    adapted_scores: list[float]


@pytest.fixture(autouse=True)
def _few_rows_of_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "SLICE_BYTES", 7 * 4 * VOCABULARY)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def made(architecture: str) -> Expected:
        chosen = next(a for a in ARCHITECTURES if a.name == architecture)
        folder = chosen.make(tmp_path_factory.mktemp("model"))
        model = load(folder, SETTINGS, MODEL).model
        answers = {prompt: generated(model, prompt) for prompt in prompts()}
        scores = scored(model, prompts()[-1])
        adapter = merged_adapter(model)
        adapted = {prompt: generated(model, prompt) for prompt in prompts()}
        return Expected(folder, answers, scores, adapter, adapted, scored(model, prompts()[-1]))

    return made


def merged_adapter(model: Any) -> Adapter:
    """A random adapter of all linears;
    it is merged into `model`, as Transformers would serve it."""
    chance = torch.Generator().manual_seed(5)
    weights = {}
    for name, shape in AdapterSet(model, AdapterReader(64)).shapes.items():
        a = torch.randn(3, shape.inputs, generator=chance)
        b = torch.randn(shape.outputs, 3, generator=chance) * 0.1
        weights[name] = LoraWeights(a, b)
        module = model.get_submodule(name)
        module.weight.data += (b @ a).t() if type(module).__name__ == "Conv1D" else b @ a
    return Adapter(3, weights)


def prompts() -> list[Prompt]:
    chance = random.Random(3)
    return [tuple(chance.randrange(256) for _ in range(length)) for length in LENGTHS]


def generated(model: Any, prompt: Prompt) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
        )
    return list(out[0, len(prompt) :].tolist())


def scored(model: Any, prompt: Prompt) -> list[float]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return list(logprobs.gather(1, ids[0, 1:, None]).flatten().tolist())


def no_batch(loaded: Loaded, engine: EngineConfig, length: int) -> Any:
    raise ModelUnsupported("the test wants the slow path")


class Eager(Drafter):
    """Takes rows to cost nothing, so that it guesses whenever it can."""

    def observe(self, rows: int, seconds: float) -> None:
        super().observe(rows, 1.0)


async def answers(
    loaded: Loaded, chosen: Chosen, expected: Expected, adapter: Adapter | None = None
) -> tuple[Answers, Answers]:
    """All prompts at once in four places, in chunks, and each beside a neighbour who leaves early.

    With an adapter, all once more with and without it,
    when the beginnings of the prompts are known already.
    Scores of a prompt are compared here.
    """
    drafter = Eager() if chosen.kind == "batched" else None
    scheduler = Scheduler(
        chosen.pool, SETTINGS.max_batch_size, SETTINGS.max_batch_tokens, 100, drafter=drafter
    )
    limits = RequestLimits(SETTINGS.max_model_length, loaded.codec.vocabulary_size)
    table = AdapterTable(1)
    if adapter:
        chosen.runner.install_adapter(table.load("it").key, adapter)
    engine = start_local(Model(scheduler, chosen.runner, loaded.codec, limits, table))
    try:
        said = await crowd(engine, [""])
        assert await found(engine, "") == pytest.approx(expected.scores, abs=2e-4)
        if not adapter:
            return said[""], {}
        again = await crowd(engine, ["", "it"])
        assert again[""] == said[""]
        assert (engine.stats().cached_prompt_tokens > 0) == (chosen.kind == "batched")
        assert await found(engine, "it") == pytest.approx(expected.adapted_scores, abs=2e-4)
        return said[""], again["it"]
    finally:
        engine.close()


async def found(engine: EngineClient, adapter: str) -> list[float]:
    """The engine's scores of the longest prompt, of which nothing is to be generated."""
    sampling = Sampling(max_tokens=0, temperature=0.0, prompt_logprobs=1)
    request = GenerationRequest("scored", prompts()[-1], sampling, adapter=adapter)
    [event] = [event async for event in engine.generate(request)]
    assert event.prompt_logprobs
    return list(event.prompt_logprobs.logprobs)


async def crowd(engine: EngineClient, adapters: list[str]) -> dict[str, Answers]:
    async def stay(prompt: Prompt, adapter: str) -> list[int]:
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.0)
        stream = engine.generate(GenerationRequest("stay", prompt, sampling, adapter=adapter))
        return [event.token_id async for event in stream if event.token_id is not None]

    async def leave(prompt: Prompt, after: int) -> list[int]:
        stream = engine.generate(
            GenerationRequest("leave", prompt, Sampling(max_tokens=20, temperature=0.0))
        )
        async for _ in stream:
            after -= 1
            if after <= 0:
                break
        await stream.aclose()
        return []

    asked = [(prompt, adapter) for prompt in prompts() for adapter in adapters]
    leaving = [leave(prompt[::-1], 1 + index % 3) for index, (prompt, _) in enumerate(asked)]
    said = await asyncio.gather(*(stay(*one) for one in asked), *leaving)
    answers: dict[str, Answers] = {adapter: {} for adapter in adapters}
    for (prompt, adapter), tokens in zip(asked, said, strict=False):
        answers[adapter][prompt] = tokens
    return answers


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
async def test_the_sequential_runner_says_what_generate_says(
    folders: Any, architecture: Architecture
) -> None:
    expected: Expected = folders(architecture.name)
    loaded = load(expected.folder, SETTINGS, MODEL)
    chosen = choose_runner(loaded, SETTINGS, SETTINGS.max_model_length, no_batch)
    assert chosen.kind == "sequential"
    assert (await answers(loaded, chosen, expected))[0] == expected.answers


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
async def test_the_runner_that_is_chosen_says_what_generate_says(
    folders: Any, architecture: Architecture
) -> None:
    expected: Expected = folders(architecture.name)
    loaded = load(expected.folder, SETTINGS, MODEL)
    chosen = choose_runner(loaded, SETTINGS, SETTINGS.max_model_length, build._batched)
    assert chosen.kind == ("batched" if architecture in BATCHED else "sequential")
    base, adapted = await answers(loaded, chosen, expected, expected.adapter)
    assert base == expected.answers
    assert adapted == expected.adapted
    assert adapted != base


async def test_guesses_change_no_answer(folders: Any) -> None:
    """Greedy and with a seed, from four tokens only, so that guesses are often right."""
    folder = folders("Llama, SmolLM, SmolLM2").folder
    few: dict[str, Any] = {
        "max_tokens": 60,
        "ignore_eos": True,
        "logit_bias": tuple((token, 50.0) for token in range(40, 44)),
    }
    sampled = (
        Sampling(temperature=0.0, **few),
        Sampling(temperature=0.4, seed=3, **few),
        Sampling(temperature=0.4, seed=3, top_p=0.9, logprobs=2, **few),
    )
    prompt = tuple(range(40, 52)) * 2

    async def told(drafter: Drafter | None) -> tuple[list[Any], Any]:
        loaded = load(folder, SETTINGS, MODEL)
        chosen = choose_runner(loaded, SETTINGS, SETTINGS.max_model_length, build._batched)
        scheduler = Scheduler(chosen.pool, 4, 64, 100, drafter=drafter)
        limits = RequestLimits(SETTINGS.max_model_length, loaded.codec.vocabulary_size)
        engine = start_local(Model(scheduler, chosen.runner, loaded.codec, limits, AdapterTable(1)))
        try:
            found = [
                [event async for event in engine.generate(GenerationRequest("it", prompt, one))]
                for one in sampled
            ]
            return found, engine.stats()
        finally:
            engine.close()

    plain, one_by_one = await told(None)
    guessed, stats = await told(Eager())
    for expected, found in zip(plain, guessed, strict=True):
        assert [event.token_id for event in found] == [event.token_id for event in expected]
        assert [event.text for event in found] == [event.text for event in expected]
        assert [event.logprob for event in found] == pytest.approx(
            [event.logprob for event in expected], abs=1e-4
        )
    assert one_by_one.guessed_tokens == 0
    assert 10 < stats.right_tokens <= stats.guessed_tokens
    assert stats.steps == one_by_one.steps - stats.right_tokens


def test_answers_depend_on_the_prompt(folders: Any) -> None:
    """Else the matrix would compare nothing."""
    for architecture in ARCHITECTURES:
        said = folders(architecture.name).answers.values()
        assert len({token for tokens in said for token in tokens}) >= 10, architecture.name


def test_the_table_of_operations_is_that_of_the_matrix() -> None:
    text = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
    assert table() in text, f"docs/operations.md must hold:\n{table()}"
