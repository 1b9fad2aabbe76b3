"""One exchange between a replica and a shared limit.
Pure: the same arithmetic for Postgres, SQLite and tests.

Several replicas share one limit without asking the store for every request: each holds a share of
it. The idea is that of escrow counters (O'Neil, "The Escrow Transactional Method", 1986), as in the
demarcation protocol (Barbará and Garcia-Molina, 1992): whoever holds a share may spend it alone,
and all shares together never exceed the limit.

A month's share has two parts. The prepaid part counts as used when it is handed out, and its holder
spends it without asking. The leased part is set aside for the holder until its lease expires, and
must become prepaid, by an exchange, before it is spent. So a replica that dies loses at most its
prepaid part. Its leased part returns to the limit, because nobody can have spent it. A minute's
share has no leased part, because what is lost drains within the minute.
"""

from dataclasses import dataclass

from llm_runtime.limits.leaky_bucket import EPSILON, LeakyBucket
from llm_runtime.limits.month import Month

CAUTION = 2
"""A replica prefetches at most what is left / (replicas x this):
near the limit each gets exactly what it needs."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one replica asks of one limit. Amounts are requests or tokens."""

    budget: str
    """`<caller>/<limit>`, and `/<YYYY-MM>` for a month's."""
    limit: int
    month: Month | None
    """Month of the limit; None for a limit per minute."""
    give: int = 0
    """Unused amount that is returned.
    Negative: debt, used without a grant and booked even beyond the limit."""
    need: int = 0
    """Amount that the smallest waiting request lacks, below which a grant is useless.
    0: no request waits."""
    demand: int = 0
    """Amount that all waiting requests lack together."""
    prefetch: int = 0
    """Amount on top of the demand, so that the next requests need not ask."""
    lease: int = 0
    """Amount to keep leased; what is leased beyond it is returned. Months only."""
    replicas: int = 1
    """Number of live replicas, among which the rest of the limit is divided."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to an `Ask`."""

    amount: int
    """Amount that the replica may spend from now on."""
    used: float
    """Amount used of the limit by all replicas, including what they hold."""
    leased: int = 0
    """Amount that is leased to this replica from now on, whatever it was before."""


def minute(bucket: LeakyBucket, ask: Ask, now: float) -> Grant:
    """Apply `ask` to the bucket of a minute's limit."""
    bucket.drain(ask.limit, now)
    bucket.give(ask.give)
    amount = _granted(int(bucket.room(ask.limit, now) + EPSILON), ask)
    bucket.take(amount)
    return Grant(amount, bucket.used)


def month(used: int, leased: int, ask: Ask) -> Grant:
    """Apply `ask` to a month's limit:
    `used` includes all leases, `leased` is this replica's own."""
    if ask.give >= 0:
        used -= ask.give  # A return.
    else:  # A debt, paid from the lease first, as that counts as used already.
        from_leased = min(leased, -ask.give)
        leased -= from_leased
        used += -ask.give - from_leased
    amount = _granted(leased + max(0, ask.limit - used), ask)
    from_leased = min(amount, leased)
    leased -= from_leased
    used += amount - from_leased
    change = ask.lease - leased
    if change > 0:
        change = min(change, max(0, ask.limit - used) // (CAUTION * ask.replicas))
    return Grant(amount, used + change, leased + change)


def _granted(room: int, ask: Ask) -> int:
    """How much of `room` is granted."""
    if room < ask.need:
        return 0  # Too little even for the smallest request: another replica may have use for it.
    if room <= ask.demand:
        return max(0, room) if ask.need else 0
    return ask.demand + min(ask.prefetch, (room - ask.demand) // (CAUTION * ask.replicas))
