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
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ("x",) * 17}, "stop"),
    ],
)
def test_refused_with_the_field_at_fault(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        LIMITS.check(request(**{"prompt": (1, 2), **wrong}))  # type: ignore[arg-type]
    assert refusal.value.param == field


def test_too_long_says_the_limit_and_what_would_fit() -> None:
    with pytest.raises(InvalidRequest, match=r"at most 100 tokens.*prompt has 90.*lower max_tokens to 10") as refusal:
        LIMITS.check(request((1,) * 90, max_tokens=20))
    assert refusal.value.code == "context_length_exceeded"
