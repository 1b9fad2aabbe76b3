"""Is the candidate's mean more than so many times stable's? Valid at every look, for large samples.

The mean of the candidate less a ratio times stable's, weighed by look, is a sum whose mean is zero
where that is the ratio. Its evidence is Robbins' normal mixture (Robbins 1970; Howard, Ramdas,
McAuliffe, Sekhon 2021, section 3.2). The variance is measured, so the promise rests on the central
limit theorem: it is an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas
2024, Time-uniform central limit theory). `clumps` widens it.
"""

from dataclasses import dataclass, field
from math import inf, log, sqrt
from statistics import NormalDist

from llm_operator.plans.evidence.buckets import Buckets
from llm_operator.plans.evidence.clumps import LEAST_BLOCKS, Clumps
from llm_operator.plans.evidence.trials import BEFORE_COUNTS, GRID, SLACK, Answer, Rules, State


@dataclass
class Sums:
    """Samples, their sum, and the sum of their squares."""

    samples: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, buckets: Buckets) -> "Sums":
        """Each sample counts as its bucket's bound: 5 % at most too much, and on both sides."""
        total = squares = before = value = 0.0
        for bound, upto in zip(buckets.bounds, buckets.upto, strict=True):
            value = value if bound == inf else bound
            if upto != before:
                part = (upto - before) * value
                total += part
                squares += part * value
                before = upto
        return cls(before, total, squares)

    def add(self, other: "Sums") -> None:
        self.samples += other.samples
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> float:
        return self.total / self.samples if self.samples else 0.0

    @property
    def variance(self) -> float:
        """Variance of one sample."""
        return max(0.0, self.squares / self.samples - self.mean**2) if self.samples else 0.0


@dataclass
class MeanTrial:
    """Is the candidate's mean above `allowed` times stable's?"""

    allowed: float
    rules: Rules
    switched: bool = False
    """Stable has its traffic before the candidate's, not beside it (Strategy.switches)."""
    own: Sums = field(default_factory=Sums)
    stable: Sums = field(default_factory=Sums)
    mine: float = 0.0
    """Means of the candidate by look, times the look's weight."""
    theirs: float = 0.0
    weight: float = 0.0
    own_weight: float = 0.0
    """How many times the variance of one sample of the candidate its sum has,"""
    stable_weight: float = 0.0
    """and of one sample of stable."""
    clumps: Clumps = field(default_factory=Clumps)
    _own: Sums = field(default_factory=Sums)
    _stable: Sums = field(default_factory=Sums)
    """Since the last look that had both sides."""

    @property
    def samples(self) -> float:
        return self.own.samples

    @property
    def other(self) -> float:
        return self.stable.samples

    def before(self, stable: Buckets) -> None:
        """What stable did before the candidate had traffic."""
        if self.switched:
            self.stable.add(Sums.of(stable))

    def look(self, own: Buckets, stable: Buckets) -> None:
        """What happened since the look before."""
        mine = Sums.of(own)
        self.own.add(mine)
        if self.switched:
            if mine.samples:
                self._enter(mine, mine.samples, 0.0, 0.0)
            return
        theirs = Sums.of(stable)
        self.stable.add(theirs)
        self._own.add(mine)
        self._stable.add(theirs)
        mine = self._own
        theirs = self._stable
        if not mine.samples or not theirs.samples:
            return
        weight = mine.samples * theirs.samples / (mine.samples + theirs.samples)
        self._enter(mine, weight, theirs.mean, weight**2 / theirs.samples)
        self._own = Sums()
        self._stable = Sums()

    def _enter(self, mine: Sums, weight: float, beside: float, stable_weight: float) -> None:
        own_weight = weight**2 / mine.samples
        self.mine += weight * mine.mean
        self.theirs += weight * beside
        self.weight += weight
        self.own_weight += own_weight
        self.stable_weight += stable_weight
        chance = (
            own_weight * self.own.variance + stable_weight * self.allowed**2 * self.stable.variance
        )
        self.clumps.add(weight * (mine.mean - self.allowed * beside), weight, chance)

    def answer(self) -> Answer:
        """What the gate says now."""
        state, message = self.state()
        ratios = [self.allowed * step for step in GRID]
        low = max((ratio for ratio in ratios if self._exceeds(ratio)), default=None)
        high = min((ratio for ratio in ratios if self._excludes(ratio)), default=None)
        return Answer(state, self.estimate, low, high, self.samples, self.other, message)

    @property
    def estimate(self) -> float | None:
        """The ratio of the means."""
        if self.switched:
            return self.own.mean / self.stable.mean if self.stable.mean and self.samples else None
        return self.mine / self.theirs if self.theirs else None

    def state(self) -> tuple[State, str]:
        """Whether it passes, and why."""
        least = self.rules.least
        counts = f"candidate {self.samples:.0f}, stable {self.other:.0f}"
        estimate = self.estimate
        if min(self.samples, self.other) < least or estimate is None:
            return "Inconclusive", f"too few samples to judge: {counts}, {least:.0f} are needed"
        if not self.clumps.judgeable:
            return "Inconclusive", f"too few looks with samples to judge: {LEAST_BLOCKS} are needed"
        said = f"samples: {counts}"
        if self._exceeds(self.allowed):
            return "Failed", said
        if estimate > self.allowed:
            return "Inconclusive", f"{said}; that it is above may be chance"
        excluded = SLACK * self.allowed
        if self._excludes(excluded):
            return "Passed", f"{said}; {excluded:.4g} times stable's is excluded"
        return "Inconclusive", f"{said}; {excluded:.4g} times stable's is not excluded yet"

    def _exceeds(self, ratio: float) -> bool:
        """Whether the candidate's mean is surely more than so many times stable's."""
        error = self.rules.false_alarm / (1 + self.switched)
        return self._evidence(ratio, 1, error) >= log(1 / error)

    def _excludes(self, ratio: float) -> bool:
        """Whether it is surely less."""
        error = self.rules.false_pass / (1 + self.switched)
        return self._evidence(ratio, -1, error) >= log(1 / error)

    def _evidence(self, ratio: float, sign: int, error: float) -> float:
        """Log of the evidence that the ratio of the means is above (sign 1) or below (-1) this
        one."""
        beside = self.theirs
        if self.switched:
            # Stable's mean is known from another time:
            # its end on the candidate's side is taken for it.
            counted = self.stable.samples * BEFORE_COUNTS
            spread = sqrt(self.stable.variance / counted) if counted else inf
            beside = self.weight * max(
                0.0, self.stable.mean - sign * NormalDist().inv_cdf(error) * spread
            )
        excess = sign * (self.mine - ratio * beside)
        variance = (
            self.own_weight * self.own.variance
            + self.stable_weight * ratio**2 * self.stable.variance
        )
        if not self.weight or excess <= 0:
            return -inf
        if not variance:
            return inf  # All samples are alike.
        # The mixture is widest where each side has the least samples that are asked for.
        part = self.weight / (self.weight + self.rules.least / 2)
        score = excess**2 / (variance * self.clumps.factor())
        return 0.5 * (log(1 - part) + score * part)


LOOKS = 5


@dataclass
class MemoryTrial:
    """Does the candidate's largest pod take more than `allowed` times the memory of stable's
    largest?

    Nothing is drawn by chance here: memory moves, so that several looks in a row must agree.
    """

    allowed: float
    rules: Rules
    ratios: list[float] = field(default_factory=list)
    """At the last looks at which both sides told it."""
    samples: float = 0.0
    """Answers of the candidate's pods so far, because an idle pod has not filled its memory."""
    other: float = 0.0

    def look(self, own: float | None, stable: float | None, samples: float, other: float) -> None:
        """Memory of both sides' largest pods in bytes,
        and how many answers both sides' pods have given."""
        self.samples = samples
        self.other = other
        if own and stable and min(samples, other) >= self.rules.least:
            self.ratios = [*self.ratios[1 - LOOKS :], own / stable]

    def answer(self) -> Answer:
        """What the gate says now."""
        counts = f"answers: candidate {self.samples:.0f}, stable {self.other:.0f}"
        low = min(self.ratios, default=None)
        high = max(self.ratios, default=None)
        last = self.ratios[-1] if self.ratios else None
        state: State = "Inconclusive"
        if min(self.samples, self.other) < self.rules.least:
            message = f"too few answers to judge: {counts}, {self.rules.least:.0f} are needed"
        elif low is None or high is None or len(self.ratios) < LOOKS:
            message = f"too few looks to judge: {LOOKS} are needed"
        else:
            state = (
                "Failed"
                if low > self.allowed
                else "Passed"
                if high <= self.allowed
                else "Inconclusive"
            )
            message = f"at the last {LOOKS} looks; {counts}"
        return Answer(state, last, low, high, self.samples, self.other, message)
