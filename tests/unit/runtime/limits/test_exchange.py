"""What replicas get of a shared limit:
sums that must hold whatever they ask, in whichever order."""

from hypothesis import given
from hypothesis import strategies as st

from llm_runtime.limits.exchange import Ask, minute, month
from llm_runtime.limits.leaky_bucket import LeakyBucket
from llm_runtime.limits.month import month_of

NOVEMBER = month_of(1_795_000_000.0)

wishes = st.tuples(
    st.integers(0, 2),  # replica
    st.integers(0, 40),  # uses so many of what it holds
    st.integers(0, 30),  # then gives back so many
    st.integers(0, 60),  # needs
    st.integers(0, 60),  # and others wait for so many
    st.integers(0, 100),  # ahead
    st.integers(0, 100),  # leased
)


@given(limit=st.integers(1, 300), wishes=st.lists(wishes, max_size=40), dies=st.integers(0, 40))
def test_three_replicas_never_use_more_than_a_months_limit_also_when_one_dies(
    limit: int, wishes: list[tuple[int, ...]], dies: int
) -> None:
    used = 0
    spent = 0
    held = [0, 0, 0]
    leased = [0, 0, 0]
    dead = set[int]()
    for number, (replica, use, give, need, more, ahead, seal) in enumerate(wishes):
        if number == dies:
            used -= leased[0]  # Its lease expires.
            dead.add(0)
        if replica in dead:
            continue
        now_used = min(use, held[replica])
        spent += now_used
        held[replica] -= now_used
        back = min(give, held[replica])
        held[replica] -= back
        ask = Ask("k", limit, NOVEMBER, back, need, need + more, ahead, seal, replicas=3)
        grant = month(used, leased[replica], ask)
        held[replica] += grant.amount
        used = int(grant.used)
        leased[replica] = grant.leased
        living = [r for r in range(3) if r not in dead]
        assert (
            spent + sum(held[r] for r in living) + sum(leased[r] for r in living) <= used <= limit
        )
        assert grant.amount == 0 or grant.amount >= need
    assert spent <= limit


def test_what_was_used_without_a_grant_is_booked_beyond_the_limit_and_from_the_leased_part_first() -> (
    None
):
    grant = month(90, 20, Ask("k", 100, NOVEMBER, give=-50, lease=20))
    assert (grant.used, grant.leased, grant.amount) == (120, 0, 0)


def test_leased_tokens_serve_their_replica_when_the_months_limit_is_used_up() -> None:
    grant = month(100, 20, Ask("k", 100, NOVEMBER, need=15, demand=15, lease=5))
    assert (grant.used, grant.leased, grant.amount) == (100, 5, 15)


def test_near_the_end_everybody_gets_exactly_what_is_asked() -> None:
    assert (
        month(90, 0, Ask("k", 100, NOVEMBER, need=5, demand=5, prefetch=50, replicas=3)).amount == 5
    )
    assert (
        month(10, 0, Ask("k", 100, NOVEMBER, need=5, demand=5, prefetch=50, replicas=3)).amount
        == 5 + 85 // 6
    )


@given(limit=st.integers(1, 300), wishes=st.lists(wishes, max_size=40))
def test_a_minutes_grants_never_exceed_a_bucket_that_nobody_shares(
    limit: int, wishes: list[tuple[int, ...]]
) -> None:
    bucket = LeakyBucket()
    now = 0.0
    granted = 0
    returned = 0
    for wish in wishes:
        _, passed, give, need, more, ahead, _ = wish
        now += passed / 10
        give = min(give, granted - returned)
        grant = minute(bucket, Ask("k", limit, None, give, need, need + more, ahead), now)
        granted = granted + grant.amount
        returned = returned + give
        assert granted - returned <= limit + now * limit / 60 + 1e-3
        assert grant.amount == 0 or grant.amount >= need


def test_a_minutes_debt_is_booked_below_empty() -> None:
    bucket = LeakyBucket(used=50.0)
    assert minute(bucket, Ask("k", 60, None, give=-30, need=1, demand=1), 0.0).amount == 0
    assert bucket.used == 80
