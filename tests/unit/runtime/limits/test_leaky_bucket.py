"""Buckets and months against a model that is simpler and slower."""

from datetime import UTC, datetime
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from llm_runtime.limits.leaky_bucket import LeakyBucket
from llm_runtime.limits.month import Calendar, month_of

steps = st.lists(
    st.tuples(st.sampled_from(["pass", "take", "give", "over"]), st.integers(0, 150)),
    min_size=1,
    max_size=60,
)


class TokenBucket:
    """A token bucket as in every textbook, in exact numbers: a level that rises to the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = Fraction(limit)
        self.level = Fraction(limit)

    def wait(self, quarters: int) -> None:
        self.level = min(self.limit, self.level + self.limit / 60 * Fraction(quarters, 4))

    def put(self, amount: int) -> None:
        self.level = min(self.limit, self.level + amount)


@given(limit=st.integers(1, 200), steps=steps)
def test_bucket_agrees_with_a_token_bucket_in_exact_numbers(
    limit: int, steps: list[tuple[str, int]]
) -> None:
    bucket = LeakyBucket()
    model = TokenBucket(limit)
    now = 0.0
    for kind, amount in steps:
        if kind == "pass":
            now += amount / 4
            model.wait(amount)
        elif kind == "give":
            bucket.drain(limit, now)
            bucket.give(amount)
            model.put(amount)
        elif kind == "over":
            bucket.drain(limit, now)
            bucket.give(-amount)
            model.level -= amount
        elif bucket.room(limit, now) + 1e-6 >= amount:
            assert model.level >= amount - Fraction(1, 10**5)
            bucket.take(amount)
            model.level -= amount
        assert abs(bucket.room(limit, now) - model.level) < 1e-5


@given(limit=st.integers(1, 10**6), used=st.integers(0, 10**6), amount=st.integers(1, 10**6))
def test_whoever_waits_as_long_as_told_finds_room_and_not_much_earlier(
    limit: int, used: int, amount: int
) -> None:
    if amount > limit:
        return
    bucket = LeakyBucket(used=float(used), at=100.0)
    wait = bucket.wait_seconds(limit, 100.0, amount)
    assert bucket.room(limit, 100.0 + wait) + 1e-6 >= amount
    if wait > 0.01:
        earlier = LeakyBucket(used=float(used), at=100.0)
        assert earlier.room(limit, 100.0 + wait * 0.99 - 0.001) < amount


def test_a_clock_that_goes_back_drains_nothing_and_costs_nothing() -> None:
    bucket = LeakyBucket(used=60.0, at=100.0)
    assert bucket.room(60, 40.0) == 0
    assert bucket.room(60, 100.0) == 0
    assert bucket.room(60, 101.0) == 1


def test_more_settled_than_reserved_goes_below_empty_and_drains_in_its_time() -> None:
    bucket = LeakyBucket(used=60.0, at=0.0)
    bucket.give(-30)
    assert bucket.room(60, 0.0) == -30
    assert bucket.wait_seconds(60, 0.0, 10) == 40
    assert bucket.full_seconds(60, 0.0) == 90


def test_a_changed_limit_counts_what_was_used() -> None:
    bucket = LeakyBucket(used=50.0, at=0.0)
    assert bucket.room(100, 0.0) == 50
    assert bucket.room(1000, 0.0) == 950
    assert bucket.room(40, 0.0) == -10


def test_a_month_ends_with_its_last_second_in_utc() -> None:
    december = month_of(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    assert december.name == "2026-12"
    assert datetime.fromtimestamp(december.end, UTC) == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_of(december.end).name == "2027-01"


def test_a_clock_set_back_does_not_open_last_months_quota_again() -> None:
    calendar = Calendar(datetime(2026, 11, 30, tzinfo=UTC).timestamp())
    assert calendar.at(datetime(2026, 12, 1, tzinfo=UTC).timestamp()).name == "2026-12"
    assert calendar.at(datetime(2026, 11, 30, 23, tzinfo=UTC).timestamp()).name == "2026-12"
