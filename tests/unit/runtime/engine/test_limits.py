"""What is refused before admission, and in which words."""

import math

import pytest

from llm_runtime.engine.limits import RequestLimits
from llm_runtime.errors import InvalidRequest
from unit.runtime.engine.fakes import request

LIMITS = RequestLimits(max_model_length=100, vocabulary_size=50)


def test_what_just_fits_is_admitted() -> None:
    LIMITS.check(request(tuple(range(50)), max_tokens=50, temperature=0.0, logprobs=20))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt": ()}, "prompt"),
        ({"prompt": (50,)}, "prompt"),
        ({"prompt": (0,) * 100}, "prompt"),
        ({"max_tokens": 100}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_p": math.nan}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"repetition_penalty": 10.1}, "repetition_penalty"),
        ({"repetition_penalty": math.nan}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"logit_bias": ((50, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((1, 100.1),)}, "logit_bias"),
        ({"logit_bias": ((1, math.nan),)}, "logit_bias"),
        ({"logit_bias": ((1, -math.inf),)}, "logit_bias"),
        ({"logit_bias": ((1, 1.0),) * 1025}, "logit_bias"),
        ({"stop_token_ids": frozenset({50})}, "stop_token_ids"),
        ({"stop_token_ids": frozenset({-1})}, "stop_token_ids"),
        ({"stop_token_ids": frozenset(range(65))}, "stop_token_ids"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x" * 10_000,)}, "stop"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ("x",) * 17}, "stop"),
    ],
)
def test_refused_with_the_field_at_fault(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        LIMITS.check(request(**{"prompt": (1, 2), **wrong}))  # type: ignore[arg-type]
    assert refusal.value.param == field
    assert field in refusal.value.message or field == "stop"


@pytest.mark.parametrize(
    "right",
    [
        {
            "presence_penalty": -2.0,
            "frequency_penalty": 2.0,
            "min_p": 1.0,
            "repetition_penalty": 10.0,
        },
        {
            "presence_penalty": 2.0,
            "frequency_penalty": -2.0,
            "min_p": 0.0,
            "repetition_penalty": 0.01,
        },
        {"logit_bias": ((0, -100.0), (49, 100.0)), "stop_token_ids": frozenset({0, 49})},
        {"stop": ("x" * 256,) * 16, "top_k": 10**6},
    ],
)
def test_the_ends_of_every_range_are_admitted(right: dict[str, object]) -> None:
    LIMITS.check(request((1, 2), **right))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"presence_penalty": 3.5}, "presence_penalty must be from -2 to 2, not 3.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be over 0 and at most 10, not 0"),
        ({"logit_bias": ((7, -200.0),)}, "logit_bias must be from -100 to 100, not -200 (token 7)"),
        (
            {"stop_token_ids": frozenset({99})},
            "stop_token_ids: token id 99 is not in the model's vocabulary of 50",
        ),
        ({"stop": ("x" * 10_000,)}, "a stop string must have from 1 to 256 characters, not 10000"),
    ],
)
def test_a_refusal_says_field_limit_and_what_was_sent(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        LIMITS.check(request((1, 2), **wrong))  # type: ignore[arg-type]
    assert refusal.value.message == message


def test_too_long_says_the_limit_and_what_would_fit() -> None:
    with pytest.raises(
        InvalidRequest,
        match=r"maximum context length is 100 tokens.*90 in the prompt.*max_tokens to 10",
    ) as refusal:
        LIMITS.check(request((1,) * 90, max_tokens=20))
    assert refusal.value.code == "context_length_exceeded"
