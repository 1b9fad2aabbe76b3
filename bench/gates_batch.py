"""The arithmetic of `plans/evidence` for many roll-outs at once, one a row:
a simulation takes minutes, not days.

Every cell of the simulation judges its first roll-outs by the operator's own code as well,
and fails if they differ.
"""

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np

from llm_operator.plans.evidence import clumps, odds, trials
from llm_operator.plans.evidence.buckets import HALF, NEARLY

Array = np.ndarray[Any, np.dtype[Any]]
MORE = np.array(odds.MORE)
LESS = np.array(odds.LESS)


def costs(grid: Array, share: Array) -> Array:
    """As odds.cost."""
    found: Array = np.log1p(np.multiply.outer(share, grid - 1))
    return found


def mixed(scores: Array, clumping: Array) -> Array:
    """As odds.mixed."""
    logs = scores / clumping[:, None]
    top = logs.max(axis=1)
    return np.asarray(top + np.log(np.exp(logs - top[:, None]).mean(axis=1)))


class Clumps:
    """As clumps.Clumps."""

    def __init__(self, rows: int) -> None:
        self.sums = np.zeros((3, rows, clumps.MOST_BLOCKS))
        self.blocks, self.open, self.looks = (np.full(rows, start) for start in (0, 0, 1))

    def add(self, rows: Array, excess: Array, weight: Array, variance: Array) -> None:
        """One look of the chosen roll-outs."""
        self.blocks[rows] += self.open[rows] == 0
        for sums, each in zip(self.sums, (excess, weight, variance), strict=True):
            sums[rows, self.blocks[rows] - 1] += each
        self.open[rows] = (self.open[rows] + 1) % self.looks[rows]
        full = np.flatnonzero((self.blocks == clumps.MOST_BLOCKS) & (self.open == 0))
        if len(full):
            half = clumps.MOST_BLOCKS // 2
            self.sums[:, full, :half] = (
                self.sums[:, full].reshape(3, len(full), half, 2).sum(axis=3)
            )
            self.sums[:, full, half:] = 0
            self.blocks[full] = half
            self.looks[full] = self.looks[full] * 2

    def factor(self, unit: Array) -> Array:
        """As clumps.Clumps.factor."""
        excess, weight, variance = self.sums
        expected = variance.sum(axis=1) * unit
        with np.errstate(all="ignore"):
            rest = excess - (excess.sum(axis=1) / weight.sum(axis=1))[:, None] * weight
            alone = (rest * rest).sum(axis=1)
            together = alone.copy()
            for lag in range(1, clumps.LAGS + 1):
                together += (
                    2 * (1 - lag / (clumps.LAGS + 1)) * (rest[:, lag:] * rest[:, :-lag]).sum(axis=1)
                )
            found = np.maximum(alone, together) / expected * self.blocks / (self.blocks - 1)
            found *= 1 + 1 / np.sqrt(self.blocks)
        return np.where(
            (self.blocks < 2) | (expected <= 0), 1.0, np.maximum(1.0, np.nan_to_num(found, nan=1.0))
        )


class Pairs:
    """As trials.Pairs: requests and bad ones of both sides."""

    def __init__(self, rows: int) -> None:
        self.sums = np.zeros((4, rows))
        self.clumps = Clumps(rows)

    def add(self, rows: Array, n: Array, bad: Array, others: Array, others_bad: Array) -> None:
        """One look of the chosen roll-outs."""
        total = n + others
        all_bad = bad + others_bad
        weight = n * others / total
        with np.errstate(all="ignore"):
            chance = np.where(
                total > 1, all_bad * (total - all_bad) * weight / (total * (total - 1)), 0.0
            )
        self.clumps.add(rows, bad - all_bad * n / total, weight, chance)
        self.sums[:, rows] += np.array((n, bad, others, others_bad))

    def clumping(self) -> Array:
        """As trials.Pairs.clumping."""
        n, bad, others, others_bad = self.sums
        with np.errstate(all="ignore"):
            own = bad / n
            other = others_bad / others
            both = (bad + others_bad) / (n + others)
            equal = both * (1 - both) * (1 / n + 1 / others)
            unit = (own * (1 - own) / n + other * (1 - other) / others) / equal
        return np.where(np.isfinite(unit) & (n > 0), self.clumps.factor(np.nan_to_num(unit)), 1.0)


class Shared:
    """As trials.Shared."""

    def __init__(self, rows: int, grid: Array) -> None:
        self.grid = grid
        self.count = np.zeros(rows)
        self.taken = np.zeros((rows, len(grid)))

    def add(self, rows: Array, n: Array, bad: Array, others: Array, others_bad: Array) -> None:
        """One look of the chosen roll-outs."""
        all_bad = bad + others_bad
        all_good = n + others - all_bad
        share = n / (n + others)
        few = all_bad <= all_good
        counts = np.where(few, bad, bad - n)
        totals = np.where(few, all_bad, all_good)
        both = (all_bad > 0) & (all_good > 0)
        taken = (
            np.where(few[:, None], costs(self.grid, share), costs(1 / self.grid, share))
            * totals[:, None]
        )
        self.count[rows] += np.where(both, counts, 0)
        self.taken[rows] += np.where(both[:, None], taken, 0)

    def evidence(self, clumping: Array) -> Array:
        """As trials.Shared.evidence."""
        return mixed(self.count[:, None] * np.log(self.grid) - self.taken, clumping)


class ErrorTrials:
    """As trials.ErrorTrial, beside a stable with traffic."""

    def __init__(self, rows: int, allowed: float, rules: trials.Rules) -> None:
        self.allowed = allowed
        self.rules = rules
        self.sums = np.zeros((4, rows))
        self.waiting = np.zeros((4, rows))
        self.clumps = Clumps(rows)
        self.pairs = Pairs(rows)
        self.shared = Shared(rows, MORE)

    def look(self, n: Array, bad: Array, others: Array, others_bad: Array) -> tuple[Array, Array]:
        """One look of all; who fails now, and who passes."""
        look = np.array((n, bad, others, others_bad), float)
        self.sums += look
        self.waiting += look
        rows = np.flatnonzero(n)
        self.clumps.add(rows, look[1, rows], look[0, rows], look[0, rows])
        rows = np.flatnonzero((self.waiting[0] > 0) & (self.waiting[2] > 0))
        chosen = self.waiting[:, rows]
        self.shared.add(rows, *chosen)
        self.pairs.add(rows, *chosen)
        self.waiting[:, rows] = 0
        return self.state()

    def state(self) -> tuple[Array, Array]:
        """As trials.ErrorTrial.state."""
        n, bad, others, others_bad = self.sums
        share = bad / np.maximum(n, 1)
        clumping = self.clumps.factor(share * (1 - share))
        ready = (n >= self.rules.least) & (self.clumps.blocks >= clumps.LEAST_BLOCKS)

        def sure(grid: Array, limit: float, error: float) -> Array:
            scores = bad[:, None] * np.log(grid) - n[:, None] * costs(grid, np.array(limit))
            found: Array = mixed(scores, clumping) >= -np.log(error)
            return found

        worse = self.shared.evidence(self.pairs.clumping()) >= -np.log(self.rules.false_alarm)
        worse |= self.pairs.sums[0] < n / 2
        worse = np.where(others < self.rules.least, others_bad <= self.allowed * others, worse)
        failed = (
            ready
            & (share > self.allowed)
            & sure(MORE, self.allowed, self.rules.false_alarm)
            & worse
        )
        excluded = trials.ERROR_SLACK * self.allowed
        return failed, ready & (share <= self.allowed) & sure(LESS, excluded, self.rules.false_pass)


class LatencyTrials:
    """As trials.LatencyTrial, beside a stable with traffic, for the two ratios that decide."""

    def __init__(
        self, rows: int, allowed: float, rules: trials.Rules, bounds: tuple[float, ...]
    ) -> None:
        self.rules = rules
        finite = bounds[:-1]
        self.ratios = (allowed, allowed * trials.SLACK)
        self.late = [
            [bisect_left(bounds, ratio * each / NEARLY) for each in finite]
            for ratio in (1.0, *self.ratios)
        ]
        self.maybe = [
            [bisect_right(bounds, ratio * each * NEARLY) - 1 for each in finite]
            for ratio in (1.0, *self.ratios)
        ]
        self.late_table, self.maybe_table = (
            np.minimum(np.array(t), len(finite)) for t in (self.late, self.maybe)
        )
        self.own, self.stable, self.reference = (np.zeros((rows, len(bounds))) for _ in range(3))
        self.samples = np.zeros(rows)
        self.others = np.zeros(rows)
        self.excess = np.zeros(rows)
        self.pairs = Pairs(rows)
        self.more = Shared(rows, MORE)
        self.less = Shared(rows, LESS)

    def look(self, own: Array, stable: Array) -> tuple[Array, Array]:
        """One look of all, samples up to each bound; who fails now, and who passes."""
        self.samples += own[:, -1]
        self.others += stable[:, -1]
        self.own += own
        self.stable += stable
        known = self.reference[:, -1] >= trials.LEAST_REFERENCE
        rows = np.flatnonzero(known & (self.own[:, -1] > 0) & (self.stable[:, -1] > 0))
        self._beside(rows)
        done = ~known
        done[rows] = True
        self.reference[done] += self.stable[done]
        self.reference[self.reference[:, -1] > trials.MOST_REFERENCE] /= 2
        self.own[done] = self.stable[done] = 0
        return self.state()

    def _beside(self, rows: Array) -> None:
        reference = self.reference[rows]
        own = self.own[rows]
        stable = self.stable[rows]
        near = self._near(reference)
        each = np.arange(len(rows))

        def beyond(histogram: Array, index: Array) -> Array:
            return histogram[:, -1] - histogram[each, index]

        n = own[:, -1]
        total = own[:, -1] + stable[:, -1]
        share = n / total
        others = beyond(stable, near)
        mine = (beyond(own, self.late_table[0][near]) + beyond(own, self.maybe_table[0][near])) / 2
        self.pairs.add(rows, n, mine, stable[:, -1], others)
        surely = beyond(own, self.late_table[1][near])
        maybe = beyond(own, self.maybe_table[1][near])
        self.excess[rows] += (surely + maybe) / 2 * (1 - share) - others * share
        self.more.add(rows, n, surely, stable[:, -1], others)
        self.less.add(rows, n, beyond(own, self.maybe_table[2][near]), stable[:, -1], others)

    def _near(self, reference: Array) -> Array:
        """As Buckets.near, its index."""
        samples = reference[:, -1:]
        finite = reference.shape[1] - 1
        above = (reference[:, :finite] < trials.QUANTILE * samples).sum(axis=1)
        inside = np.clip(above, 1, finite - 1)
        each = np.arange(len(reference))
        with np.errstate(all="ignore"):
            over = 1 - reference[each, inside - 1] / samples[:, 0]
            under = 1 - reference[each, inside] / samples[:, 0]
            wanted = 1 - trials.QUANTILE
            nearer = (over > HALF) | (
                (under > 0) & (np.log(wanted / under) < np.log(over / wanted))
            )
        found = np.where(nearer, inside, inside - 1)
        return np.where(above == 0, 0, np.where(above >= finite, finite - 1, found))

    def state(self) -> tuple[Array, Array]:
        """As trials.LatencyTrial.state."""
        clumping = self.pairs.clumping()
        ready = np.minimum(self.samples, self.others) >= self.rules.least
        ready &= self.pairs.clumps.blocks >= clumps.LEAST_BLOCKS
        more = self.more.evidence(clumping)
        less = self.less.evidence(clumping)
        failed = ready & (more >= -np.log(self.rules.false_alarm))
        return failed, ready & ~failed & (self.excess <= 0) & (
            less >= -np.log(self.rules.false_pass)
        )
