"""A model that knows nothing obeys a schema and an expression,
and its neighbours in the batch notice nothing."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema
import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.contract import EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.errors import InvalidRequest  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from llm_runtime.request import Constraint, FinishReason, GenerationRequest, Sampling  # noqa: E402
from llm_runtime.text.codec import Codec  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402

Built = tuple[EngineClient, Codec]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "ages": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 99},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["name", "kind", "ages"],
    "additionalProperties": False,
}
PATTERN = r"[A-Z][a-zä]{2,9}, \d{4}-\d\d(!|\?)"
NEIGHBOURS = ("one", "another one", "a third neighbour")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tiny_model.make(tmp_path_factory.mktemp("tiny"))
    settings = EngineConfig(
        device="cpu", max_model_length=400, max_batch_size=16, max_batch_tokens=64
    )
    engine, codec = build_engine(
        RuntimeConfig(model=ModelConfig(name="tiny"), engine=settings), folder
    )
    yield engine, codec
    engine.close()


async def answer(built: Built, prompt: str, **sampling: Any) -> tuple[str, FinishReason | None]:
    engine, codec = built
    request = GenerationRequest("r", tuple(codec.encode(prompt)), Sampling(**sampling))
    events = [event async for event in engine.generate(request)]
    return "".join(event.text for event in events), events[-1].finish_reason


async def greedy(built: Built) -> AsyncIterator[tuple[str, FinishReason | None]]:
    for prompt in NEIGHBOURS:
        yield await answer(built, prompt, max_tokens=60, temperature=0.0)


@pytest.mark.parametrize(
    "constraint",
    [Constraint("json_schema", json.dumps(SCHEMA)), Constraint("regex", PATTERN)],
    ids=["schema", "expression"],
)
async def test_twenty_seeds_obey_and_unbound_neighbours_say_what_they_say_alone(
    built: Built, constraint: Constraint
) -> None:
    alone = [text async for text in greedy(built)]
    crowd = [
        answer(built, "go", max_tokens=300, seed=seed, constraint=constraint) for seed in range(20)
    ]
    beside = [answer(built, prompt, max_tokens=60, temperature=0.0) for prompt in NEIGHBOURS]
    found = await asyncio.gather(*crowd, *beside)
    assert found[20:] == alone
    for text, reason in found[:20]:
        assert reason is FinishReason.STOP, text
        if constraint.kind == "regex":
            assert re.fullmatch(PATTERN, text)
        else:
            jsonschema.validate(json.loads(text), SCHEMA)
    assert len({text for text, _ in found[:20]}) > 10


async def test_a_seeded_answer_with_everything_on_is_the_same_alone_and_in_a_crowd(
    built: Built,
) -> None:
    options: dict[str, Any] = {
        "max_tokens": 40, "seed": 7, "temperature": 1.3, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.1,
        "frequency_penalty": 0.3, "presence_penalty": 0.2, "logit_bias": ((65, 1.0),),
    }  # fmt: skip
    alone = await answer(built, "a prompt", **options)
    crowd = [
        answer(built, f"prompt {n}", max_tokens=5 + 3 * n, top_k=n, min_p=n / 20) for n in range(14)
    ]
    found = await asyncio.gather(*crowd[:7], answer(built, "a prompt", **options), *crowd[7:])
    assert found[7] == alone


async def test_greedy_rows_obey_too(built: Built) -> None:
    bound = Constraint("regex", r"\d{3}")
    text, reason = await answer(built, "go", max_tokens=9, temperature=0.0, constraint=bound)
    assert re.fullmatch(r"\d{3}", text)
    assert reason is FinishReason.STOP


async def test_a_constraint_that_is_too_long_for_max_tokens_ends_with_length(built: Built) -> None:
    text, reason = await answer(
        built, "go", max_tokens=4, constraint=Constraint("regex", "[ab]{9}")
    )
    assert re.fullmatch("[ab]{4}", text)
    assert reason is FinishReason.LENGTH


async def test_ignore_eos_goes_on_to_the_length_and_shows_no_more(built: Built) -> None:
    bound = Constraint("regex", "[ab]{3}")
    text, reason = await answer(built, "go", max_tokens=8, ignore_eos=True, constraint=bound)
    assert re.fullmatch("[ab]{3}", text)
    assert reason is FinishReason.LENGTH


async def test_a_constraint_that_can_not_be_ends_its_request_only(built: Built) -> None:
    """The pipeline refuses it before; an engine that is given one all the same goes on."""
    with pytest.raises(InvalidRequest, match="unclosed group"):
        built[1].check_constraint(Constraint("regex", "(a"))
    refused, fine = await asyncio.gather(
        answer(built, "go", max_tokens=8, constraint=Constraint("regex", "(a")),
        answer(built, "go", max_tokens=3),
    )
    assert refused == ("", FinishReason.ERROR)
    assert fine[1] in (FinishReason.STOP, FinishReason.LENGTH)
