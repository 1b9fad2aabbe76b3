"""One caller's limits: its concurrent places and up to four budgets.
A request gets all that it needs, or nothing."""

from typing import Protocol

from llm_runtime import errors
from llm_runtime.contract import Tier
from llm_runtime.limits.budget import Budget
from llm_runtime.limits.leaky_bucket import MINUTE_SECONDS
from llm_runtime.limits.month import Month
from llm_runtime.limits.slots import Slots
from llm_runtime.limits.standing import LimitStanding, Standing

MINUTES = ("requests_per_minute", "tokens_per_minute")
MONTHS = ("requests_per_month", "tokens_per_month")
SHORTEST_RETRY_SECONDS = 0.001

Lack = tuple[Budget, int]
"""A budget, and what was wanted of it."""


class BudgetSource(Protocol):
    """Makes budgets, local or shared ones."""

    def budget(self, name: str, limit: int, month: Month | None, now: float) -> Budget:
        """`name` is `<caller>/<limit>`."""
        ...


class Account:
    """What one caller uses. Known by a caller's id; its tier may change at any time."""

    __slots__ = (
        "_budgets",
        "_month",
        "_source",
        "caller_id",
        "requests",
        "slots",
        "tier",
        "tokens",
    )

    def __init__(
        self, caller_id: str, tier: Tier, source: BudgetSource, now: float, month: Month
    ) -> None:
        self.caller_id = caller_id
        self.tier = tier
        self.slots = Slots(tier.max_concurrent)
        self.requests: tuple[Budget, ...] = ()
        self.tokens: tuple[Budget, ...] = ()
        """The budgets that a request draws on. Every change makes a new tuple, so that a running
        request settles with the one it had."""
        self._source = source
        self._month = month
        self._budgets: dict[str, Budget] = {}
        self._adopt(tier, now)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return *self.requests, *self.tokens

    def refresh(self, tier: Tier, now: float, month: Month) -> None:
        """Take over a changed tier, before every request. Its limits count from this request on,
        and what was used is not forgotten."""
        if tier is not self.tier:
            if tier.max_concurrent != self.tier.max_concurrent:
                self.slots.resize(tier.max_concurrent)
            self._adopt(tier, now)
        if month is not self._month:
            self._month = month
            for name in MONTHS:
                self._budgets.pop(name, None)
            self._adopt(tier, now)

    def check_possible(self, requests: int, tokens: int) -> None:
        """Raise `errors.LimitTooSmall` for what would be refused every time."""
        for name, budget in self._budgets.items():
            amount = requests if budget in self.requests else tokens
            if amount > budget.limit:
                raise _too_small(name, budget.limit, amount)

    def most_tokens(self) -> int | None:
        return min((budget.limit for budget in self.tokens), default=None)

    def reserve(self, now: float, requests: int, tokens: int) -> list[Lack]:
        """Take from every budget, or, if one has not enough at hand, from none;
        then say which these are."""
        lacking: list[Lack] = []
        for budget in self.requests:
            if budget.room(now) < requests:
                lacking.append((budget, requests))
        for budget in self.tokens:
            if budget.room(now) < tokens:
                lacking.append((budget, tokens))
        if not lacking:
            self.take(now, requests, tokens)
        return lacking

    def spent_months(self, now: float) -> list[Lack]:
        """Limits of a month's tokens that are used up: not one token is left, and no request runs
        that may give some back."""
        if self.slots.running:
            return []
        return [(budget, 1) for budget in self.tokens if budget.month and budget.room(now) < 1]

    def take(self, now: float, requests: int, tokens: int) -> None:
        """Take from every budget, whatever is there."""
        for budget in self.requests:
            budget.take(now, requests)
        for budget in self.tokens:
            budget.take(now, tokens)

    def refusal(self, lacking: list[Lack], now: float, wall: float) -> errors.Refusal:
        """The refusal with the longest wait, because only after it does the request have a
        chance."""
        refusals = [self._refusal(budget, amount, now, wall) for budget, amount in lacking]
        return max(refusals, key=lambda refusal: refusal.retry_after_seconds or 0.0)

    def no_place(self) -> errors.Refusal:
        message = (
            f"At most {self.slots.limit} requests of this caller run at the same time, and"
            f" {self.slots.waiting} others wait for their turn; send fewer at once."
        )
        retry = self.slots.retry_after_seconds()
        return errors.RateLimited(message, code="concurrent_requests", retry_after_seconds=retry)

    def idle(self, now: float) -> bool:
        """Whether forgetting this account would lose nothing."""
        return self.slots.idle and all(budget.idle(now) for budget in self._budgets.values())

    def forgettable(self) -> bool:
        return self.slots.idle and all(budget.forgettable() for budget in self._budgets.values())

    def standing(self, now: float, wall: float) -> Standing:
        readings = {name: _reading(budget, now, wall) for name, budget in self._budgets.items()}
        return Standing(
            **readings,
            max_concurrent=self.slots.limit,
            running=self.slots.running,
            waiting=self.slots.waiting,
        )

    def _adopt(self, tier: Tier, now: float) -> None:
        self.tier = tier
        for name in (*MINUTES, *MONTHS):
            limit: int | None = getattr(tier, name)
            if limit is None:
                self._budgets.pop(name, None)
            elif name in self._budgets:
                self._budgets[name].limit = limit
            else:
                month = self._month if name in MONTHS else None
                self._budgets[name] = self._source.budget(
                    f"{self.caller_id}/{name}", limit, month, now
                )
        self.requests = tuple(
            self._budgets[name] for name in (MINUTES[0], MONTHS[0]) if name in self._budgets
        )
        self.tokens = tuple(
            self._budgets[name] for name in (MINUTES[1], MONTHS[1]) if name in self._budgets
        )

    def _refusal(self, budget: Budget, amount: int, now: float, wall: float) -> errors.Refusal:
        name = next(name for name, known in self._budgets.items() if known is budget)
        left = max(0, int(budget.remaining(now)))
        unit = _unit(name)
        if budget.month:
            message = (
                f"{left} of the {budget.limit} {unit} of this month are left, and this request"
                f" needs {amount}. The next month begins at midnight UTC of its first day; until"
                " then only a larger quota helps."
            )
            return errors.QuotaExceeded(
                message, retry_after_seconds=max(1.0, budget.month.end - wall)
            )
        wait = max(
            SHORTEST_RETRY_SECONDS, (amount - budget.remaining(now)) * MINUTE_SECONDS / budget.limit
        )
        message = (
            f"{left} of {budget.limit} {unit} per minute are left, and this request needs {amount};"
            f" that will be there in {wait:.3g} s."
        )
        return errors.RateLimited(message, code=name, retry_after_seconds=wait)


def _too_small(name: str, limit: int, amount: int) -> errors.LimitTooSmall:
    unit = _unit(name)
    period = name.rpartition("_")[2]
    how = (
        "max_tokens and the prompt count together"
        if unit == "tokens"
        else "every prompt and choice counts"
    )
    message = (
        f"This request needs {amount} {unit}, and its caller's limit is {limit} {unit} per {period}"
        f" ({name}): it can never be answered. Ask for at most {limit} ({how})."
    )
    return errors.LimitTooSmall(message, code=name)


def _unit(name: str) -> str:
    return name.partition("_")[0]


def _reading(budget: Budget, now: float, wall: float) -> LimitStanding:
    left = budget.remaining(now)
    if budget.month:
        reset = max(0.0, budget.month.end - wall)
    else:
        reset = max(0.0, (budget.limit - left) * MINUTE_SECONDS / budget.limit)
    return LimitStanding(budget.limit, max(0, int(left)), reset)
