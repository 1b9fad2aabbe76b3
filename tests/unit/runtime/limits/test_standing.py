"""The headers, in the form that OpenAI's clients know."""

import pytest

from llm_runtime.limits.standing import LimitStanding, Standing, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.02, "20ms"), (0.0001, "1ms"), (0.9999, "1s"), (1.5, "1.5s"), (1.234567, "1.235s"), (60, "1m0s"),
        (360, "6m0s"), (361.5, "6m1.5s"), (3600, "1h0m0s"), (86400 * 10 + 61, "240h1m1s"), (0.1 + 0.2, "300ms"),
    ],
)  # fmt: skip
def test_reset_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_limits_there_are_no_headers() -> None:
    assert Standing(max_concurrent=5, running=2).headers() == {}


def test_a_month_alone_is_shown() -> None:
    assert Standing(tokens_per_month=LimitStanding(1000, 10, 7200)).headers() == {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "10",
        "x-ratelimit-reset-tokens": "2h0m0s",
    }


def test_of_a_minute_and_a_month_the_one_with_less_remaining_is_shown() -> None:
    minute = LimitStanding(100, 50, 30)
    month = LimitStanding(1000, 400, 9000)
    assert Standing(minute, minute, month, month).headers()["x-ratelimit-limit-tokens"] == "100"
    scarce = LimitStanding(1000, 3, 9000)
    headers = Standing(minute, minute, month, scarce).headers()
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-tokens"] == "3"
    assert headers["x-ratelimit-reset-tokens"] == "2h30m0s"
