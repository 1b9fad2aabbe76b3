"""How much samples that arrive in clumps are discounted:
bursts of errors, slow minutes, tokens of one answer.

The spread between blocks of looks is measured against what independent requests would have ("batch
means", with neighbouring blocks' covariance as Newey and West 1987 weigh it). Blocks are joined in
pairs as they get many, so they grow with time, and with them the longest clump that is seen.
"""

from dataclasses import dataclass, field
from math import sqrt

MOST_BLOCKS = 32
LAGS = 3
LEAST_BLOCKS = 5
"""With fewer it can't be told whether bad requests come in clumps, so nothing is decided."""


@dataclass
class Clumps:
    """Sums by block. Independent requests give 1 as the ratio of measured to expected variance."""

    excess: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    """The excess is compared with its mean, in proportion to this."""
    variance: list[float] = field(default_factory=list)
    """Variance of the excess, if requests are independent."""
    looks: int = 1
    """In one block."""
    open: int = 0
    """Looks in the last block, while it is not full."""

    def add(self, excess: float, weight: float, variance: float) -> None:
        """One look with requests."""
        if not self.open:
            self.excess.append(0.0)
            self.weight.append(0.0)
            self.variance.append(0.0)
        self.excess[-1] += excess
        self.weight[-1] += weight
        self.variance[-1] += variance
        self.open = (self.open + 1) % self.looks
        if len(self.excess) == MOST_BLOCKS and not self.open:
            self.looks *= 2
            for sums in (self.excess, self.weight, self.variance):
                sums[:] = [sums[i] + sums[i + 1] for i in range(0, MOST_BLOCKS, 2)]

    @property
    def judgeable(self) -> bool:
        """Whether there are blocks enough to see clumps."""
        return len(self.excess) >= LEAST_BLOCKS

    def factor(self, unit: float = 1.0) -> float:
        """How many times the variance of independent requests;
        at least 1. `unit` scales the expected variances."""
        blocks = len(self.excess)
        expected = sum(self.variance) * unit
        if blocks < 2 or expected <= 0:
            return 1.0
        mean = sum(self.excess) / sum(self.weight)
        rest = [
            excess - mean * weight for excess, weight in zip(self.excess, self.weight, strict=True)
        ]
        alone = together = sum(each * each for each in rest)
        for lag in range(1, min(LAGS, blocks - 1) + 1):
            together += (
                2
                * (1 - lag / (LAGS + 1))
                * sum(a * b for a, b in zip(rest, rest[lag:], strict=False))
            )
        found = max(alone, together) / expected * blocks / (blocks - 1)
        # Of few blocks the figure is itself uncertain.
        return max(1.0, found * (1 + 1 / sqrt(blocks)))
