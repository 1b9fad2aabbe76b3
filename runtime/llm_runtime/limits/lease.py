"""One limit of one caller that several replicas share: what this one holds of it, and when it asks for more.

Requests take from what is held, without a word to anybody. Before that runs out more is fetched behind their backs; a
request waits only where it needs more than is there. What lies idle goes back, so that others can use it.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llm_runtime.limits.bucket import EPSILON, Bucket
from llm_runtime.limits.exchange import Ask, Grant
from llm_runtime.limits.month import Month

AHEAD_SECONDS = 2.0
AHEAD_REQUESTS = 8
"""What is held should last so long at the recent pace, and for so many requests of the usual size."""
SEAL_SECONDS = 10.0
"""How long the sealed part of a month's share should last: through a short absence of the database."""
AHEAD_PART = 20
"""All replicas together take at most limit / this of a minute's limit ahead, and keep at most twice that."""
IDLE_SECONDS, SCARCE_IDLE_SECONDS = 15.0, 2.0
"""When what lies idle goes back; the shorter time where less than a quarter of the limit is left."""
RECHECK_SECONDS = 1.0
"""A limit that was found used up is asked about again so often, as another replica may have given something back."""
PACE_SECONDS = 1.0


class Desk(Protocol):
    """Where leases ask; `broker.Broker`."""

    @property
    def away(self) -> bool:
        """The shared truth can't be asked now."""
        ...

    @property
    def replicas(self) -> int: ...

    def sealed_is_ours(self, now: float) -> bool:
        """Whether nobody can have taken our sealed parts for a dead replica's."""
        ...

    def want(self, lease: "Lease", *, urgent: bool = False) -> None:
        """Ask for `lease` soon; before all others, if somebody waits."""
        ...

    def keep(self, lease: "Lease") -> None:
        """`lease` holds something now that must go back one day."""
        ...

    def holds(self, lease: "Lease") -> bool: ...


class Lease:
    """What both kinds of shared limits have in common. Amounts are requests or tokens."""

    def __init__(self, desk: Desk, budget: str, limit: int, month: Month | None, now: float) -> None:
        self.budget, self.limit, self.month = budget, limit, month
        self._desk = desk
        self._open = 0
        """May be used at once. Negative: owed, as more was settled than reserved or the database was away."""
        self._sealed = 0
        self._low = self._target = 0
        """How much should lie open; below `_low` more is fetched, which is 0 while that is under way or of no use."""
        self._touched_at = self._planned_at = now
        self._answered_at: float | None = None
        self._taken = self._takes = self._size = 0
        self._pace = 0.0
        self._starved = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._asking: list[tuple[int, asyncio.Future[None]]] = []

    def room(self, now: float) -> float:
        return self.remaining(now) if self._desk.away else self._open

    def take(self, now: float, amount: int) -> None:
        self._open -= amount
        self._taken += amount
        self._takes += 1
        self._touched_at = now
        if self._open < self._low or self._desk.away:
            self._low = 0
            self._desk.want(self)

    def give(self, now: float, amount: int) -> None:
        self._open += amount
        if self._open < 0:
            self._desk.want(self)
        else:
            self._desk.keep(self)

    def remaining(self, now: float) -> float:
        raise NotImplementedError

    def worth_asking(self, now: float, amount: int) -> bool:
        if self._desk.away:
            return False
        answered = self._answered_at
        return answered is None or now - answered >= RECHECK_SECONDS or amount <= self.remaining(now)

    def ask(self, amount: int) -> "asyncio.Future[None]":
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, answer))
        self._desk.want(self, urgent=True)
        return answer

    def idle(self, now: float) -> bool:
        return not self._desk.holds(self)

    def forgettable(self) -> bool:
        return not self._desk.holds(self)

    # What follows is the desk's side.

    @property
    def empty(self) -> bool:
        """Nothing held, nothing owed, nobody waiting: the desk may forget it."""
        return not (self._open or self._sealed or self._waiting or self._asking)

    def plan(self, now: float, *, closing: bool = False) -> Ask | None:
        """What to ask now, if anything. What it gives back is no longer held; `accept` or `fail` must follow."""
        waiting = [amount for amount, answer in self._waiting if not answer.done()]
        self._asking, self._waiting = self._waiting, []
        ahead, seal = self._measure(now, waiting)
        scarce = 4 * self.remaining(now) < self.limit
        idle = now - self._touched_at >= (SCARCE_IDLE_SECONDS if scarce else IDLE_SECONDS)
        resting = closing or self._starved or idle
        if resting and not waiting:
            ahead = seal = 0
            self._starved = False
        give = 0 if waiting and self._open >= 0 else self._surplus(ahead)
        self._open -= give
        self._target = ahead
        short = 2 * self._open < ahead or 2 * self._sealed < seal
        if not (waiting or give or short or self._sealed > 2 * seal):
            return None
        need = max(0, min(waiting) - self._open) if waiting else 0
        demand = max(0, sum(waiting) - self._open)
        ahead = max(0, ahead - max(0, self._open - sum(waiting)))
        return Ask(self.budget, self.limit, self.month, give, need, demand, ahead, seal, self._desk.replicas)

    def accept(self, ask: Ask, grant: Grant, now: float) -> None:
        """The answer to what `plan` asked."""
        self._open += grant.amount
        self._sealed = grant.sealed
        self._answered_at = now
        self._low = self._target // 2 if grant.amount >= ask.demand + ask.ahead else 0
        self._see(grant.used, now)
        if ask.need and not grant.amount:
            # It is too little for us; together with what others hold it may be enough for somebody.
            self._starved = True
            self._desk.want(self)
        self.wake()

    def fail(self, ask: Ask) -> None:
        """No answer. What was to go back may have arrived, so it is not used; what is owed stays owed."""
        self._open += min(0, ask.give)
        self.wake()

    def wake(self) -> None:
        """Those who waited for an answer look again."""
        for _, answer in self._asking:
            if not answer.done():
                answer.set_result(None)
        self._asking = []

    def release(self) -> None:
        """Nobody will answer: everybody looks again."""
        self._asking, self._waiting = self._asking + self._waiting, []
        self.wake()

    def come_back(self, now: float) -> None:
        """The shared truth can be asked again."""

    def _measure(self, now: float, waiting: Sequence[int]) -> tuple[int, int]:
        """How much to hold open and sealed, from the pace and the requests of late."""
        elapsed, self._planned_at = max(0.0, now - self._planned_at), now
        self._pace = (self._taken + self._pace * PACE_SECONDS) / (elapsed + PACE_SECONDS)
        if count := self._takes + len(waiting):
            self._size = (self._taken + sum(waiting)) // count
        self._taken = self._takes = 0
        ahead = max(int(self._pace * AHEAD_SECONDS), self._size * AHEAD_REQUESTS)
        return self._ahead(ahead), int(self._pace * SEAL_SECONDS)

    def _surplus(self, ahead: int) -> int:
        """What should go back; negative: what is owed."""
        if self._open < 0 or not ahead:
            return self._open
        return self._open - ahead if self._open > 2 * ahead else 0

    def _ahead(self, wished: int) -> int:
        raise NotImplementedError

    def _see(self, used: float, now: float) -> None:
        raise NotImplementedError


class SharedMonth(Lease):
    """A share of a month's limit."""

    _used = 0

    def remaining(self, now: float) -> float:
        sealed = self._sealed if not self._desk.away or self._desk.sealed_is_ours(now) else 0
        return self._open + sealed + self.limit - self._used

    def _ahead(self, wished: int) -> int:
        return wished

    def _see(self, used: float, now: float) -> None:
        self._used = int(used)


class SharedMinute(Lease):
    """A share of a minute's limit. While the truth is away it goes on by itself, at its part of the speed."""

    def __init__(self, desk: Desk, budget: str, limit: int, now: float) -> None:
        super().__init__(desk, budget, limit, None, now)
        self._seen = Bucket(at=now)
        """As the truth was last seen."""
        self._alone = 0
        """Taken beyond what was held, while the truth was away."""

    def remaining(self, now: float) -> float:
        speed = self.limit / (self._desk.replicas if self._desk.away else 1)
        return self._open + self.limit - self._seen.drain(speed, now) + EPSILON

    def take(self, now: float, amount: int) -> None:
        if self._desk.away and (beyond := amount - max(0, self._open)) > 0:
            self._seen.take(beyond)
            self._alone += beyond
            self._open += beyond
        super().take(now, amount)

    def come_back(self, now: float) -> None:
        """What was taken meanwhile and has not drained is owed."""
        used = self._seen.drain(self.limit / self._desk.replicas, now)
        self._open -= min(self._alone, int(used))
        self._alone = 0

    def _measure(self, now: float, waiting: Sequence[int]) -> tuple[int, int]:
        return super()._measure(now, waiting)[0], 0

    def _ahead(self, wished: int) -> int:
        return min(wished, self.limit // (AHEAD_PART * self._desk.replicas))

    def _see(self, used: float, now: float) -> None:
        self._seen.used, self._seen.at = used, now
