"""The one door through which every request to the model goes: it counts requests, gives places and
reserves tokens.

`count` draws a request before its body is read. So a request of a caller whose limit is used up
costs nothing more, and one that is refused later has counted. `admit` then waits for one of the
caller's concurrent places. It reserves the known need in all budgets of the caller, or in none.
`Admission.reserve` makes that exact once the prompt is encoded, and `Admission.settle` gives back
what was not used. The place comes before the tokens, so that nobody who waits holds some that
others could use.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from llm_runtime.db.database import Database
from llm_runtime.limits.account import Account, BudgetSource, Lack
from llm_runtime.limits.broker import EXCHANGE_SECONDS, Broker, Store
from llm_runtime.limits.budget import Budget, LocalMinute, LocalMonth
from llm_runtime.limits.lease import SharedMinute, SharedMonth
from llm_runtime.limits.month import Calendar, Month
from llm_runtime.limits.shared import SqlStore
from llm_runtime.limits.slots import NoPlace
from llm_runtime.limits.standing import Standing
from llm_runtime.request import Caller

MAX_ACCOUNTS = 100_000
"""Largest number of callers that are remembered. Beyond it, those who came least recently are
forgotten, even with a limit used up."""
LOOK_BACK = 3
"""How many old accounts are looked at for every new one:
more than one, so that their number goes down."""


Draw = Callable[[Account, int, int], Awaitable[float]]


class Limiter:
    """All limits of this process.
    Enter it before the first `admit`: what is shared is asked for in the background."""

    def __init__(
        self,
        *,
        minutes: Store | None = None,
        months: Store | None = None,
        slot_timeout_seconds: float = 30.0,
        max_accounts: int = MAX_ACCOUNTS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`minutes` and `months` are where these limits are shared;
        None: this process alone counts.

        See `configured` for the usual way to choose them.
        `clock` never jumps; `wall` knows the date.
        """
        self._max_accounts = max_accounts
        self._clock = clock
        self._slot_timeout_seconds = slot_timeout_seconds
        self._source = _Budgets(minutes, months, clock)
        self._wall = self._source.months.wall if self._source.months else wall
        self._calendar = Calendar(self._wall())
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._parts = AsyncExitStack()

    @classmethod
    def configured(
        cls,
        database: Database | None = None,
        redis_url: str = "",
        *,
        slot_timeout_seconds: float = 30.0,
    ) -> Self:
        """Shared limits where there is a store for them. A database shares the months; Redis shares
        the minutes, or else Postgres; else each process counts alone."""
        months = SqlStore(database) if database else None
        minutes: Store | None = months if database and database.postgres else None
        if redis_url:
            from llm_runtime.limits.redis import RedisStore  # An extra.

            minutes = RedisStore(redis_url)
        return cls(minutes=minutes, months=months, slot_timeout_seconds=slot_timeout_seconds)

    @property
    def away(self) -> bool:
        """Whether a store of limits does not answer, so that limits are not exact across replicas
        now."""
        return any(broker.away for broker in self._source.brokers)

    async def __aenter__(self) -> Self:
        for broker in self._source.brokers:
            await self._parts.enter_async_context(broker)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._parts.aclose()

    @property
    def remembered(self) -> int:
        """Callers whose use is known here."""
        return len(self._accounts)

    async def count(self, caller: Caller) -> None:
        """Draw one request, whatever becomes of it.

        Raises `errors.RateLimited`, or `errors.QuotaExceeded` for a month's limit,
        also that of tokens.
        """
        account = self._account(caller)
        now = await self._draw(account, 1, 0)
        spent = account.spent_months(now)
        if spent and (spent := [lack for lack in spent if _hopeless(lack, now, late=False)]):
            raise account.refusal(spent, now, self._wall())

    async def admit(
        self, caller: Caller, tokens: int, *, requests: int = 1, counted: int = 0
    ) -> "Admission":
        """Reserve `tokens` and `requests` for one caller,
        and one of its places: all of it or nothing.

        `counted` of the requests have been drawn already. Waits for a place. Raises
        `errors.RateLimited`, or `errors.QuotaExceeded` for a month's limit.
        """
        account = self._account(caller)
        account.check_possible(requests, tokens)
        try:
            await account.slots.enter(self._slot_timeout_seconds)
        except NoPlace as error:
            raise account.no_place() from error
        try:
            wanted = requests > counted or tokens
            now = await self._draw(account, requests - counted, tokens) if wanted else self._clock()
        except BaseException:
            account.slots.leave()
            raise
        return Admission(account, tokens, self._clock, now, self._draw)

    def most_tokens(self, caller: Caller) -> int | None:
        """The largest reservation that can ever be admitted; None: any."""
        tier = caller.tier
        return min(
            (limit for limit in (tier.tokens_per_minute, tier.tokens_per_month) if limit),
            default=None,
        )

    def standing(self, caller: Caller) -> Standing:
        """How the caller stands now, as far as it is known here: exact after `admit` and `settle`.

        Asking opens no account.
        """
        return self._look(caller).standing(self._clock(), self._wall())

    async def ask_standing(self, caller: Caller) -> Standing:
        """How the caller stands with all replicas, also if it was never here: asks the store."""
        account = self._look(caller)
        now = self._clock()
        await _all(
            [budget.ask(0) for budget in account.budgets if budget.worth_asking(now, 0)],
            EXCHANGE_SECONDS,
        )
        return account.standing(self._clock(), self._wall())

    def _look(self, caller: Caller) -> Account:
        now = self._clock()
        month = self._calendar.at(self._wall())
        account = self._accounts.get(caller.id)
        if account is None:
            return Account(caller.id, caller.tier, self._source, now, month)
        account.refresh(caller.tier, now, month)
        return account

    def _account(self, caller: Caller) -> Account:
        now = self._clock()
        month = self._calendar.at(self._wall())
        account = self._accounts.get(caller.id)
        if account is None:
            self._forget(now)
            account = self._accounts[caller.id] = Account(
                caller.id, caller.tier, self._source, now, month
            )
        else:
            self._accounts.move_to_end(caller.id)
            account.refresh(caller.tier, now, month)
        return account

    def _forget(self, now: float) -> None:
        """Make room for a new account.
        Those that are in use go to the end, so that the next look finds others."""
        for _ in range(min(LOOK_BACK, len(self._accounts))):
            caller_id, account = next(iter(self._accounts.items()))
            crowded = len(self._accounts) >= self._max_accounts
            if account.idle(now) or (crowded and account.forgettable()):
                del self._accounts[caller_id]
            else:
                self._accounts.move_to_end(caller_id)

    async def _draw(self, account: Account, requests: int, tokens: int) -> float:
        """Take all of it or nothing, asking the store if needed. Returns the moment."""
        now = self._clock()
        if lacking := account.reserve(now, requests, tokens):
            now = await self._fetch(account, lacking, requests, tokens)
        return now

    async def _fetch(
        self, account: Account, lacking: list[Lack], requests: int, tokens: int
    ) -> float:
        """Ask the store until the reservation is made, or is known to be impossible. Returns the
        moment.

        Where the store is slow or away, the last figures known of it decide.
        """
        began = now = self._clock()
        while lacking:
            late = now - began >= EXCHANGE_SECONDS
            if hopeless := [lack for lack in lacking if _hopeless(lack, now, late=late)]:
                raise account.refusal(hopeless, now, self._wall())
            if late:
                account.take(now, requests, tokens)
                break
            await _all([budget.ask(amount) for budget, amount in lacking], EXCHANGE_SECONDS)
            now = self._clock()
            lacking = account.reserve(now, requests, tokens)
        return now


async def _all(answers: Sequence["asyncio.Future[None]"], seconds: float) -> None:
    try:
        if answers:
            await asyncio.wait(answers, timeout=seconds)
    finally:
        for answer in answers:
            answer.cancel()  # Nobody waits for it any more.


def _hopeless(lack: Lack, now: float, *, late: bool) -> bool:
    budget, amount = lack
    return budget.remaining(now) < amount if late else not budget.worth_asking(now, amount)


class Admission:
    """One admitted request: what was reserved for it, and its place."""

    __slots__ = ("_account", "_admitted_at", "_budgets", "_clock", "_draw", "_reserved", "_settled")

    def __init__(
        self, account: Account, reserved: int, clock: Callable[[], float], now: float, draw: Draw
    ) -> None:
        self._account = account
        self._budgets = account.tokens
        self._draw = draw
        self._reserved = reserved
        self._clock = clock
        self._admitted_at = now
        self._settled = False

    async def reserve(self, tokens: int) -> None:
        """Change the reservation to `tokens`. Raises as `Limiter.admit` does; then nothing is
        reserved."""
        self._account.check_possible(0, tokens)
        self._give_back(self._reserved)
        self._reserved = 0
        await self._draw(self._account, 0, tokens)
        self._budgets = self._account.tokens
        self._reserved = tokens

    def settle(self, tokens: int) -> None:
        """Settle a request that has ended and used `tokens`, even more than were reserved. Only the
        first call counts."""
        if self._settled:
            return
        self._settled = True
        self._give_back(self._reserved - tokens)
        self._account.slots.leave(self._clock() - self._admitted_at)

    def _give_back(self, tokens: int) -> None:
        if tokens:
            for budget in self._budgets:
                budget.give(self._clock(), tokens)


class _Budgets(BudgetSource):
    """Budgets of this process alone, or shared ones where there is a store for them."""

    def __init__(
        self, minutes: Store | None, months: Store | None, clock: Callable[[], float]
    ) -> None:
        self.minutes = Broker(minutes, clock) if minutes else None
        if months and months is minutes:
            self.months = self.minutes
        else:
            self.months = Broker(months, clock) if months else None
        self.brokers = list(
            dict.fromkeys(broker for broker in (self.minutes, self.months) if broker)
        )

    def budget(self, name: str, limit: int, month: Month | None, now: float) -> Budget:
        broker = self.months if month else self.minutes
        if broker is None:
            return LocalMonth(limit, month) if month else LocalMinute(limit, now)
        name = f"{name}/{month.name}" if month else name
        if lease := broker.lease_of(name):
            lease.limit = limit
            return lease
        return (
            SharedMonth(broker, name, limit, month, now)
            if month
            else SharedMinute(broker, name, limit, now)
        )
