"""Samples counted by bucket: what a histogram says, and no more."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from operator import add

NEARLY = 1 + 1e-9
"""Bounds are products of floats: two that differ by less are one."""


HALF = 0.5


@dataclass(frozen=True)
class Buckets:
    """Samples up to each upper bound, cumulative, bounds in order."""

    bounds: tuple[float, ...] = ()
    upto: tuple[float, ...] = ()

    @classmethod
    def of(cls, histogram: Mapping[float, float]) -> "Buckets":
        """From counts by upper bound, as Prometheus has them."""
        bounds = tuple(sorted(histogram))
        return cls(bounds, tuple(histogram[bound] for bound in bounds))

    @property
    def samples(self) -> float:
        return self.upto[-1] if self.upto else 0.0

    def surely_beyond(self, value: float) -> float:
        """Samples that are above `value` whatever their place in a bucket."""
        return self._beyond(bisect_left(self.bounds, value / NEARLY))

    def maybe_beyond(self, value: float) -> float:
        """Samples that may be above `value`."""
        return self._beyond(bisect_right(self.bounds, value * NEARLY) - 1)

    def _beyond(self, index: int) -> float:
        if index < 0:
            return self.samples
        return self.samples - self.upto[index] if index < len(self.upto) else 0.0

    def __add__(self, other: "Buckets") -> "Buckets":
        """Both together; where bounds differ (runtimes of two ages in one revision),
        by those that both know."""
        if not self.bounds or not other.bounds:
            return self if self.bounds else other
        if self.bounds == other.bounds:
            return Buckets(self.bounds, tuple(map(add, self.upto, other.upto)))
        mine = dict(zip(self.bounds, self.upto, strict=True))
        theirs = dict(zip(other.bounds, other.upto, strict=True))
        return Buckets.of(
            {bound: mine[bound] + theirs[bound] for bound in mine.keys() & theirs.keys()}
        )

    def halved(self) -> "Buckets":
        """Each sample counted half."""
        return Buckets(self.bounds, tuple(each / 2 for each in self.upto))

    def near(self, quantile: float) -> float:
        """The finite bound whose share of samples beyond it is nearest to 1 - quantile,
        and no more than a half."""
        finite = len(self.bounds) - (self.bounds[-1] == inf)
        above = bisect_left(self.upto, quantile * self.samples, 0, finite)
        if above >= finite:
            return self.bounds[finite - 1]
        if not above:
            return self.bounds[0]
        wanted = 1 - quantile
        over = 1 - self.upto[above - 1] / self.samples
        under = 1 - self.upto[above] / self.samples
        nearer = over > HALF or (under > 0 and log(wanted / under) < log(over / wanted))
        return self.bounds[above if nearer or above == finite else above - 1]
