"""What a replica asks of a shared limit and what it gets. Pure: the same arithmetic for Postgres, SQLite and tests.

A month's share has two parts. The open part may be used without a word to anybody and counts as used from the moment it
is handed out. The sealed part is kept for the replica by a lease and may be used only after it was opened here. So a
replica that dies takes with it what was open, never more, and what was sealed can be given back without a doubt.
"""

from dataclasses import dataclass

from llm_runtime.limits.bucket import EPSILON, Bucket
from llm_runtime.limits.month import Month

CAUTION = 2
"""A replica takes ahead at most what is left / (replicas x this): near the end everybody gets exactly what is asked."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One replica's wish concerning one limit. Amounts are requests or tokens."""

    budget: str
    """`<caller>/<limit>`, and `/<YYYY-MM>` for a month's."""
    limit: int
    month: Month | None
    """None for a minute's limit."""
    give: int = 0
    """Comes back unused; negative: was used without having been granted, and is booked whatever the limit."""
    need: int = 0
    """What the smallest of the waiting requests lacks; less is of no use. 0: nobody waits."""
    demand: int = 0
    """What all waiting requests lack together."""
    ahead: int = 0
    """To take on top, so that the next requests need not ask."""
    seal: int = 0
    """How much to keep sealed; what is sealed beyond it is given back. Months only."""
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to an `Ask`."""

    amount: int
    used: float
    """Of the limit by everybody, what is handed out included."""
    sealed: int = 0
    """Kept for this replica from now on; it replaces what the replica believed."""


def minute(bucket: Bucket, ask: Ask, now: float) -> Grant:
    """Change `bucket` as `ask` says. A minute's limit seals nothing: what dies with a replica drains by itself."""
    bucket.drain(ask.limit, now)
    bucket.give(ask.give)
    amount = _share(int(bucket.room(ask.limit, now) + EPSILON), ask)
    bucket.take(amount)
    return Grant(amount, bucket.used)


def month(used: int, sealed: int, ask: Ask) -> Grant:
    """`used` includes what is sealed, for whichever replica; `sealed` is what is kept for this one."""
    if ask.give >= 0:
        used -= ask.give
    else:
        from_sealed = min(sealed, -ask.give)
        sealed -= from_sealed
        used += -ask.give - from_sealed
    amount = _share(sealed + max(0, ask.limit - used), ask)
    from_sealed = min(amount, sealed)
    sealed -= from_sealed
    used += amount - from_sealed
    change = ask.seal - sealed
    if change > 0:
        change = min(change, max(0, ask.limit - used) // (CAUTION * ask.replicas))
    return Grant(amount, used + change, sealed + change)


def _share(room: int, ask: Ask) -> int:
    if room < ask.need:
        return 0
    if room <= ask.demand:
        return max(0, room) if ask.need else 0
    return ask.demand + min(ask.ahead, (room - ask.demand) // (CAUTION * ask.replicas))
