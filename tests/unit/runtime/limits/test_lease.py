"""Leases of three replicas on one limit,
with everything that may go wrong between them and the truth."""

import random

import pytest

from llm_runtime.limits.exchange import Grant, minute, month
from llm_runtime.limits.leaky_bucket import LeakyBucket
from llm_runtime.limits.lease import Lease, SharedMinute, SharedMonth
from llm_runtime.limits.month import month_of

NOVEMBER = month_of(1_795_000_000.0)


class Desk:
    """A desk that only notes who wants something."""

    def __init__(self) -> None:
        self.away = False
        self.replicas = 3
        self.wanted: set[str] = set()

    def leases_are_valid(self, now: float) -> bool:
        return True

    def want(self, lease: Lease, *, urgent: bool = False) -> None:
        self.wanted.add(lease.budget)

    def keep(self, lease: Lease) -> None:
        pass

    def holds(self, lease: Lease) -> bool:
        return True


@pytest.mark.parametrize("seed", range(60))
async def test_a_month_is_never_exceeded_whatever_is_lost_on_the_way(seed: int) -> None:
    chance = random.Random(seed)
    limit = random.Random(seed).choice([50, 500, 5000])
    leases = [SharedMonth(Desk(), "key/month", limit, NOVEMBER, 0.0) for _ in range(3)]
    used = 0
    leased = [0, 0, 0]
    spent = 0
    now = 0.0
    running: list[tuple[SharedMonth, int]] = []

    for _ in range(600):
        number = chance.randrange(3)
        lease = leases[number]
        now += chance.choice([0, 0.01, 0.5, 3])
        amount = chance.randint(1, max(1, limit // 20))
        if chance.random() < 0.6 and lease.room(now) >= amount:
            lease.take(now, amount)
            spent += amount
            running.append((lease, amount))
        elif running and chance.random() < 0.5:
            holder, reserved = running.pop(chance.randrange(len(running)))
            unused = chance.randint(0, reserved)
            holder.give(now, unused)
            spent -= unused
        elif chance.random() < 0.05:
            used = used - leased[number]
            leased[number] = 0  # Its lease expired; it does not know.
        else:
            if chance.random() < 0.7:
                lease.ask(amount)
            if ask := lease.plan(now):
                arrived = chance.random() < 0.9
                answered = chance.random() < 0.9
                if arrived:
                    grant = month(used, leased[number], ask)
                    used = int(grant.used)
                    leased[number] = grant.leased
                    if answered:
                        lease.accept(ask, grant, now)
                if not (arrived and answered):
                    lease.fail(ask)
        held = sum(int(lease.room(now)) for lease in leases)
        assert spent + held + sum(leased) <= used <= limit


async def test_those_who_wait_are_answered_together_and_the_next_plan_asks_for_the_rest() -> None:
    lease = SharedMonth(Desk(), "key/month", 1000, NOVEMBER, 0.0)
    answers = [lease.ask(10), lease.ask(20)]
    ask = lease.plan(0.0)
    assert ask
    assert (ask.need, ask.demand) == (10, 30)
    late = lease.ask(5)
    lease.accept(ask, Grant(30, 30), 0.0)
    assert [answer.done() for answer in answers] == [True, True]
    assert not late.done()
    lease.take(0.0, 30)
    ask = lease.plan(0.1)
    assert ask
    assert ask.need == 5


async def test_whoever_gave_up_waiting_is_not_asked_for() -> None:
    lease = SharedMonth(Desk(), "key/month", 1000, NOVEMBER, 0.0)
    lease.ask(10).cancel()
    assert lease.plan(0.0) is None


async def test_more_is_fetched_before_what_is_held_runs_out() -> None:
    desk = Desk()
    lease = SharedMonth(desk, "key/month", 10**6, NOVEMBER, 0.0)
    lease.ask(10)
    ask = lease.plan(0.0)
    assert ask
    assert ask.prefetch == 80
    lease.accept(ask, Grant(90, 90), 0.0)
    desk.wanted.clear()
    for _ in range(5):
        lease.take(0.1, 10)
    assert not desk.wanted
    lease.take(0.1, 10)
    assert desk.wanted


async def test_a_refused_replica_gives_back_what_is_too_little_for_it() -> None:
    lease = SharedMonth(Desk(), "key/month", 100, NOVEMBER, 0.0)
    lease.ask(6)
    first = lease.plan(0.0)
    assert first
    lease.accept(first, Grant(6, 98, 0), 0.0)
    lease.ask(9)
    second = lease.plan(0.1)
    assert second
    assert second.need == 3
    lease.accept(second, Grant(0, 98, 0), 0.1)
    third = lease.plan(0.1)
    assert third
    assert third.give == 6
    assert lease.room(0.1) == 0


@pytest.mark.parametrize("seed", range(20))
async def test_replicas_hold_at_most_a_tenth_of_a_minute_ahead(seed: int) -> None:
    chance = random.Random(seed)
    limit = 6000
    truth = LeakyBucket()
    now = 0.0
    leases = [SharedMinute(Desk(), "key/minute", limit, 0.0) for _ in range(3)]
    spent = 0
    for _ in range(500):
        lease = chance.choice(leases)
        amount = chance.randint(1, 60)
        now += chance.choice([0, 0.01, 0.1])
        if lease.room(now) < amount:
            lease.ask(amount)
        if ask := lease.plan(now):
            lease.accept(ask, minute(truth, ask, now), now)
        if lease.room(now) >= amount:
            lease.take(now, amount)
            spent += amount
        assert spent <= limit + now * limit / 60 + 1e-3
        assert sum(lease.room(now) for lease in leases) <= limit / 10


async def test_what_a_minute_took_alone_and_has_not_drained_is_owed_afterwards() -> None:
    desk = Desk()
    lease = SharedMinute(desk, "key/minute", 600, 0.0)
    desk.away = True
    assert int(lease.room(0.0)) == 600
    lease.take(0.0, 400)
    assert int(lease.room(30.0)) == 200 + 100  # A third of the pace: there are three replicas.
    lease.come_back(30.0)
    desk.away = False
    ask = lease.plan(30.0)
    assert ask
    assert ask.give == -300
