"""The door, on one replica without a database: who gets in, what it costs, what comes back."""

import asyncio
import math
import random
from datetime import UTC, datetime

import pytest

from llm_runtime import errors
from llm_runtime.contract import Tier
from llm_runtime.limits import Admission, Limiter
from llm_runtime.request import Caller

START = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


class Time:
    """A clock that is set by hand; the wall's and the monotonic one go together."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return START + self.now - 1000.0


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def limits(time: Time) -> Limiter:
    return Limiter(clock=time.monotonic, wall=time.wall, slot_timeout_seconds=0.05)


def caller(name: str = "key", **limits: int | None) -> Caller:
    return Caller(
        name, name, Tier.model_validate({"name": "gold", "max_concurrent": None, **limits})
    )


async def many(
    limits: Limiter, who: Caller, tokens: int, count: int
) -> tuple[list[Admission], list[errors.Refusal]]:
    answers = await asyncio.gather(
        *(limits.admit(who, tokens) for _ in range(count)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, errors.Refusal)]
    admitted = [answer for answer in answers if isinstance(answer, Admission)]
    assert len(refused) + len(admitted) == count
    return admitted, refused


async def test_fifty_parallel_calls_at_a_hundred_token_limit_do_not_overshoot(
    limits: Limiter,
) -> None:
    admitted, refused = await many(limits, caller(tokens_per_minute=100), 20, 50)
    assert (len(admitted), len(refused)) == (5, 45)
    assert {refusal.code for refusal in refused} == {"tokens_per_minute"}


async def test_fifty_parallel_calls_that_wait_for_places_do_not_overshoot(
    limits: Limiter, time: Time
) -> None:
    who = caller(tokens_per_minute=100, max_concurrent=5)
    used = 0
    running = 0
    peak = 0

    async def call() -> None:
        nonlocal used, running, peak
        admission = await limits.admit(who, 20)
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        used += 10
        admission.settle(10)

    await asyncio.gather(*(call() for _ in range(50)), return_exceptions=True)
    assert used <= 100
    assert used >= 90  # What came back was used by those who waited.
    assert peak <= 5
    assert limits.standing(who).running == 0


async def test_all_limits_or_none(limits: Limiter) -> None:
    who = caller(
        requests_per_minute=10, tokens_per_minute=100, requests_per_month=10, tokens_per_month=50
    )
    (await limits.admit(who, 40)).settle(40)
    with pytest.raises(errors.QuotaExceeded):
        await limits.admit(who, 20)
    standing = limits.standing(who)
    assert standing.requests_per_minute
    assert standing.tokens_per_minute
    assert standing.requests_per_minute.remaining == 9
    assert standing.tokens_per_minute.remaining == 60


async def test_what_was_not_used_comes_back_once(limits: Limiter) -> None:
    who = caller(tokens_per_minute=100, tokens_per_month=1000)
    first = await limits.admit(who, 80)
    assert limits.standing(who).headers()["x-ratelimit-remaining-tokens"] == "20"
    first.settle(30)
    first.settle(0)
    assert limits.standing(who).headers()["x-ratelimit-remaining-tokens"] == "70"
    assert limits.standing(who).tokens_per_month.remaining == 970  # type: ignore[union-attr]


async def test_more_used_than_reserved_is_charged_and_pays_itself_off(
    limits: Limiter, time: Time
) -> None:
    who = caller(tokens_per_minute=60)
    (await limits.admit(who, 60)).settle(90)
    assert limits.standing(who).headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(errors.RateLimited) as refused:
        await limits.admit(who, 10)
    assert refused.value.retry_after_seconds == pytest.approx(40, abs=0.001)
    time.now += 40
    await limits.admit(who, 10)


async def test_retry_after_is_true(limits: Limiter, time: Time) -> None:
    who = caller(requests_per_minute=6)
    for _ in range(6):
        await limits.admit(who, 5)
    with pytest.raises(errors.RateLimited) as refused:
        await limits.admit(who, 5)
    assert refused.value.retry_after_seconds == pytest.approx(10, abs=0.001)
    assert (refused.value.status, refused.value.code) == (429, "requests_per_minute")
    time.now += 9.9
    with pytest.raises(errors.RateLimited):
        await limits.admit(who, 5)
    time.now += 0.1
    await limits.admit(who, 5)


async def test_a_request_that_never_fits_is_told_what_would(limits: Limiter) -> None:
    who = caller(tokens_per_minute=100, tokens_per_month=80)
    assert limits.most_tokens(who) == 80
    assert limits.most_tokens(caller("other")) is None
    with pytest.raises(errors.LimitTooSmall, match="at most 80") as refused:
        await limits.admit(who, 81)
    assert refused.value.code == "tokens_per_month"
    assert refused.value.should_retry is False
    assert refused.value.retry_after_seconds is None
    with pytest.raises(errors.LimitTooSmall, match="at most 2 "):
        await limits.admit(caller("third", requests_per_minute=2), 1, requests=3)
    assert limits.standing(who).tokens_per_minute.remaining == 100  # type: ignore[union-attr]


async def test_a_months_quota_ends_with_the_month(limits: Limiter, time: Time) -> None:
    who = caller(requests_per_month=2, tokens_per_month=1000)
    long = await limits.admit(who, 100)
    await limits.admit(who, 100)
    with pytest.raises(errors.QuotaExceeded) as refused:
        await limits.admit(who, 100)
    left = datetime(2026, 12, 1, tzinfo=UTC).timestamp() - time.wall()
    assert refused.value.retry_after_seconds == pytest.approx(left)
    assert (refused.value.code, refused.value.should_retry) == ("insufficient_quota", False)
    time.now += math.ceil(left)
    await limits.admit(who, 100)
    long.settle(50)  # Belongs to November.
    assert limits.standing(who).tokens_per_month.remaining == 900  # type: ignore[union-attr]


async def test_a_clock_that_goes_back_does_nothing(limits: Limiter, time: Time) -> None:
    who = caller(requests_per_minute=1, requests_per_month=3)
    await limits.admit(who, 1)
    time.now -= 500
    with pytest.raises(errors.RateLimited):
        await limits.admit(who, 1)
    assert limits.standing(who).requests_per_month.remaining == 2  # type: ignore[union-attr]
    time.now += 560
    await limits.admit(who, 1)


async def test_another_tier_counts_from_the_next_request_on_and_forgets_nothing(
    limits: Limiter,
) -> None:
    small = caller(tokens_per_minute=100)
    large = caller(tokens_per_minute=1000, max_concurrent=1)
    (await limits.admit(small, 100)).settle(100)
    with pytest.raises(errors.RateLimited):
        await limits.admit(small, 1)
    await limits.admit(large, 800)
    assert limits.standing(large).tokens_per_minute.remaining == 100  # type: ignore[union-attr]
    with pytest.raises(errors.RateLimited) as refused:
        await limits.admit(large, 1)
    assert refused.value.code == "concurrent_requests"
    with pytest.raises(errors.RateLimited):
        await limits.admit(small, 1)
    unlimited = caller()
    (await limits.admit(unlimited, 10**9)).settle(0)
    assert limits.standing(unlimited).headers() == {}


async def test_waiting_for_a_place_holds_no_tokens(limits: Limiter) -> None:
    who = caller(tokens_per_minute=100, max_concurrent=1)
    first = await limits.admit(who, 10)
    waiting = asyncio.create_task(limits.admit(who, 90))
    await asyncio.sleep(0)
    assert limits.standing(who).waiting == 1
    assert limits.standing(who).tokens_per_minute.remaining == 90  # type: ignore[union-attr]
    first.settle(10)
    await waiting


async def test_whoever_waits_too_long_is_told_so(limits: Limiter) -> None:
    who = caller(max_concurrent=2)
    await limits.admit(who, 1)
    await limits.admit(who, 1)
    with pytest.raises(errors.RateLimited, match="At most 2 requests of this caller") as refused:
        await limits.admit(who, 1)
    assert refused.value.code == "concurrent_requests"
    assert refused.value.retry_after_seconds is not None
    assert refused.value.retry_after_seconds >= 1


@pytest.mark.parametrize("seed", range(20))
async def test_cancelled_at_any_await_nothing_leaks(limits: Limiter, seed: int) -> None:
    chance = random.Random(seed)
    who = caller(tokens_per_minute=10_000, max_concurrent=3)

    async def call() -> None:
        admission = await limits.admit(who, 50)
        try:
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
        finally:
            admission.settle(0)

    tasks = list[asyncio.Task[None]]()
    for _ in range(100):
        tasks.append(asyncio.create_task(call()))
        if chance.random() < 0.6:
            chance.choice(tasks[-10:]).cancel()
        if chance.random() < 0.4:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    standing = limits.standing(who)
    assert (standing.running, standing.waiting) == (0, 0)
    assert standing.tokens_per_minute
    assert standing.tokens_per_minute.remaining == 10_000


async def test_a_hundred_thousand_addresses_are_forgotten_once_their_buckets_are_full_again(
    limits: Limiter, time: Time
) -> None:
    most = 0
    for number in range(100_000):
        time.now += 0.001
        (await limits.admit(caller_of(number), 5)).settle(1)
        most = max(most, limits.remembered)
    assert (
        most < 1500
    )  # One request of sixty a minute has drained after a second, in which a thousand came.


async def test_an_address_that_is_busy_is_never_forgotten(limits: Limiter, time: Time) -> None:
    busy = await limits.admit(caller_of(0), 5)
    for number in range(1, 1000):
        time.now += 1
        (await limits.admit(caller_of(number), 5)).settle(1)
    assert limits.standing(caller_of(0)).running == 1
    assert limits.remembered < 10
    busy.settle(5)


async def test_a_flood_of_addresses_ends_at_a_fixed_number(time: Time) -> None:
    limits = Limiter(clock=time.monotonic, wall=time.wall, max_accounts=500)
    for number in range(3000):
        (await limits.admit(caller_of(number), 5)).settle(1)
    assert limits.remembered <= 500


TIER = Tier(name="address", requests_per_minute=60, max_concurrent=5)


def caller_of(number: int) -> Caller:
    return Caller(f"ip:10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "anonymous", TIER)


async def test_looking_at_ones_limits_is_not_remembered(limits: Limiter) -> None:
    assert limits.standing(caller(requests_per_minute=3)).headers() == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "0s",
    }
    assert limits.remembered == 0
