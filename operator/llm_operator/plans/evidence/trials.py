"""What a gate asks of a candidate's traffic:
too many errors? too slow? Answers are valid at every look."""

from dataclasses import dataclass, field
from math import exp, log
from typing import Literal

from llm_operator.plans.evidence import odds
from llm_operator.plans.evidence.buckets import Buckets
from llm_operator.plans.evidence.clumps import LEAST_BLOCKS, Clumps

QUANTILE = 0.95
SLACK = 1.5
"""A latency gate passes once it has excluded this many times the allowed ratio."""
ERROR_SLACK = 2.0
"""An error gate passes once it has excluded this many times the allowed rate."""
LEAST_RATE = 0.01
"""An error gate that allows no error passes once it has excluded this rate."""
STEPS = 9
"""Steps of the grid of ratios in a factor of SLACK: 4.6 % from one to the next."""
GRID = tuple(SLACK ** (step / STEPS) for step in range(-31, 32))
"""Times the allowed ratio, a quarter to four: where the ends of the interval are looked for."""
LEAST_REFERENCE = 20
MOST_REFERENCE = 1000
"""Samples of stable that its 95th percentile is taken from: the last 500 to 1,000."""
BEFORE_COUNTS = 0.5
"""What a sample of stable from before the switch counts:
it is from another time than the candidate's."""

State = Literal["Passed", "Failed", "Inconclusive"]


@dataclass(frozen=True)
class Rules:
    """How sure a gate must be."""

    false_alarm: float = 0.01
    """Share of roll-outs of a candidate within the threshold that may fail by this gate,
    all looks together."""
    false_pass: float = 0.05
    """Share of roll-outs of a candidate that is worse by the excluded size that may pass,
    at any look."""
    least: float = 50
    """Samples that each side must have."""


@dataclass(frozen=True)
class Answer:
    """What a gate says, and why."""

    state: State
    estimate: float | None
    low: float | None
    """None: nothing is excluded on this side."""
    high: float | None
    samples: float
    """Samples of the candidate."""
    beside: float
    """Samples of stable."""
    message: str


@dataclass
class Counts:
    """Requests, and the bad ones among them."""

    requests: float = 0.0
    bad: float = 0.0

    def add(self, other: "Counts") -> None:
        self.requests += other.requests
        self.bad += other.bad

    @property
    def good(self) -> float:
        return self.requests - self.bad

    @property
    def share(self) -> float:
        return self.bad / self.requests if self.requests else 0.0

    @property
    def variance(self) -> float:
        """Variance of whether one request is bad."""
        return self.share * (1 - self.share)

    def high(self, error: float) -> float:
        """Upper end for the share of bad ones, of counts of another time."""
        return odds.high(self.bad * BEFORE_COUNTS, self.requests * BEFORE_COUNTS, error)

    def low(self, error: float) -> float:
        """Lower end for it."""
        return odds.low(self.bad * BEFORE_COUNTS, self.requests * BEFORE_COUNTS, error)


@dataclass
class Pairs:
    """Looks with both sides: whose are the bad requests, and in what clumps do they come?"""

    own: Counts = field(default_factory=Counts)
    other: Counts = field(default_factory=Counts)
    clumps: Clumps = field(default_factory=Clumps)

    def add(self, own: Counts, other: Counts) -> None:
        """Note the candidate's excess of bad requests in one look,
        its weight, its variance by chance."""
        total = own.requests + other.requests
        bad = own.bad + other.bad
        weight = own.requests * other.requests / total
        chance = bad * (total - bad) * weight / (total * (total - 1)) if total > 1 else 0.0
        self.clumps.add(own.bad - bad * own.requests / total, weight, chance)
        self.own.add(own)
        self.other.add(other)

    @property
    def clumping(self) -> float:
        """The number by which the evidence is divided."""
        own = self.own
        other = self.other
        if not own.requests:
            return 1.0
        together = Counts(own.requests + other.requests, own.bad + other.bad)
        # The variance by chance is that of equal shares: where they differ, each side has its own.
        equal = together.variance * (1 / own.requests + 1 / other.requests)
        found = own.variance / own.requests + other.variance / other.requests
        return self.clumps.factor(found / equal) if equal else 1.0


@dataclass
class Shared:
    """Evidence on whose the bad requests are, added up over looks: by odds ratio of a grid."""

    grid: tuple[float, ...]
    count: float = 0.0
    taken: list[float] = field(default_factory=list)

    def add(
        self, own: Counts, other: Counts, costs: list[float], inverse_costs: list[float]
    ) -> None:
        """One look, with the candidate's share in `costs`.
        Of bad and good requests the rarer count.

        The bound by the binomial is close while they are few,
        and to be more often bad is to be less often good.
        """
        bad = own.bad + other.bad
        good = own.good + other.good
        if not bad or not good:
            return
        if bad <= good:
            self.plain(own.bad, bad, costs)
        else:
            self.plain(-own.good, good, inverse_costs)

    def plain(self, count: float, total: float, costs: list[float]) -> None:
        """One look, against a share that is known and in `costs`."""
        self.count += count
        self.taken = [taken + total * cost for taken, cost in zip(self.taken, costs, strict=True)]

    def evidence(self, clumping: float) -> float:
        """Log of the evidence."""
        return odds.mixed(odds.score(self.grid, self.count, self.taken), clumping)


def more() -> Shared:
    """Evidence that the candidate has more than its share."""
    return Shared(odds.MORE, 0.0, [0.0] * len(odds.MORE))


def less() -> Shared:
    """Evidence that it has less."""
    return Shared(odds.LESS, 0.0, [0.0] * len(odds.LESS))


@dataclass
class ErrorTrial:
    """Is the candidate's share of errors above what is allowed, and above stable's?

    Failing takes both: errors that stable has as well,
    in the same looks, are not the candidate's fault.
    """

    allowed: float
    rules: Rules
    switched: bool = False
    """Stable has its traffic before the candidate's, not beside it (Strategy.switches)."""
    bad: str = "were errors"
    """What a bad answer was."""
    own: Counts = field(default_factory=Counts)
    other: Counts = field(default_factory=Counts)
    clumps: Clumps = field(default_factory=Clumps)
    pairs: Pairs = field(default_factory=Pairs)
    shared: Shared = field(default_factory=more)
    _own: Counts = field(default_factory=Counts)
    _other: Counts = field(default_factory=Counts)
    """Since the last look that had both sides."""

    def before(self, stable: Counts) -> None:
        """What stable did before the candidate had traffic."""
        if self.switched:
            self.other.add(stable)

    def look(self, own: Counts, stable: Counts) -> None:
        """What happened since the look before."""
        self.own.add(own)
        if own.requests:
            self.clumps.add(own.bad, own.requests, own.requests)
        if self.switched:
            return
        self.other.add(stable)
        self._own.add(own)
        self._other.add(stable)
        if not self._own.requests or not self._other.requests:
            return
        own = self._own
        other = self._other
        share = own.requests / (own.requests + other.requests)
        self.shared.add(own, other, odds.cost(odds.MORE, share), odds.cost(odds.LESS, share))
        self.pairs.add(own, other)
        self._own = Counts()
        self._other = Counts()

    @property
    def excluded(self) -> float:
        """What a gate that passes has excluded."""
        return ERROR_SLACK * self.allowed or LEAST_RATE

    def answer(self) -> Answer:
        """What the gate says now."""
        own = self.own
        state, message = self.state()
        if not own.requests:
            return Answer(state, None, None, None, 0, self.other.requests, message)
        clumping = self.clumps.factor(own.variance)
        low = odds.low(own.bad, own.requests, self.rules.false_alarm, clumping)
        high = odds.high(own.bad, own.requests, self.rules.false_pass, clumping)
        return Answer(state, own.share, low, high, own.requests, self.other.requests, message)

    def state(self) -> tuple[State, str]:
        """Whether it passes, and why."""
        own = self.own
        rules = self.rules
        if own.requests < rules.least:
            return (
                "Inconclusive",
                f"too few requests to judge: {own.requests:.0f}, {rules.least:.0f} are needed",
            )
        if not self.clumps.judgeable:
            return (
                "Inconclusive",
                f"too few looks with requests to judge: {LEAST_BLOCKS} are needed",
            )
        said = f"{round(own.bad, 1):.15g} of {own.requests:.0f} answers {self.bad}"
        clumping = self.clumps.factor(own.variance)
        if own.share > self.allowed:
            if odds.evidence(odds.MORE, own.bad, own.requests, self.allowed, clumping) < log(
                1 / rules.false_alarm
            ):
                return "Inconclusive", f"{said}, which may be chance"
            if self._worse(clumping):
                return "Failed", said
            other = f"{self.other.bad:.0f} of {self.other.requests:.0f}"
            return (
                "Inconclusive",
                f"{said}; stable had {other}, so it may not be the candidate's fault",
            )
        if odds.evidence(odds.LESS, own.bad, own.requests, self.excluded, clumping) < log(
            1 / rules.false_pass
        ):
            return "Inconclusive", f"{said}: a rate of {self.excluded:.4g} is not excluded yet"
        return "Passed", f"{said}: a rate of {self.excluded:.4g} is excluded"

    def _worse(self, clumping: float) -> bool:
        """Whether the candidate is surely worse than stable, or stable says nothing about it."""
        own = self.own
        other = self.other
        error = self.rules.false_alarm
        if other.requests < self.rules.least:
            return other.share <= self.allowed
        if self.switched:
            usual = other.high(error / 2)
            return odds.evidence(odds.MORE, own.bad, own.requests, usual, clumping) >= log(
                2 / error
            )
        if self.pairs.own.requests < own.requests / 2:
            return True
        return self.shared.evidence(self.pairs.clumping) >= log(1 / error)


@dataclass
class LatencyTrial:
    """Is the candidate's 95th percentile more than `allowed` times stable's?

    Asked as shares: of the candidate's samples beyond allowed times t,
    and of stable's beyond t, its 95th percentile.
    """

    allowed: float
    rules: Rules
    switched: bool = False
    """Stable has its traffic before the candidate's, not beside it (Strategy.switches)."""
    ratios: tuple[float, ...] = ()
    samples: float = 0.0
    other: float = 0.0
    reference: Buckets = field(default_factory=Buckets)
    """What stable did before this look."""
    clumps: Clumps = field(default_factory=Clumps)
    """After the switch."""
    late: Counts = field(default_factory=Counts)
    """After the switch: the candidate's that are beyond stable's 95th percentile."""
    pairs: Pairs = field(default_factory=Pairs)
    _own: Buckets = field(default_factory=Buckets)
    _stable: Buckets = field(default_factory=Buckets)
    """Since the last look that had both sides."""

    def __post_init__(self) -> None:
        self.ratios = self.ratios or tuple(self.allowed * step for step in GRID)
        count = len(self.ratios)
        self._more = [more() for _ in self.ratios]
        self._less = [less() for _ in self.ratios]
        self._excess = [0.0] * count
        self._usual: tuple[float, float, float, float] | None = None

    def before(self, stable: Buckets) -> None:
        """What stable did before the candidate had traffic."""
        self.reference = self.reference + stable
        if self.switched:
            self.other += stable.samples

    def look(self, own: Buckets, stable: Buckets) -> None:
        """What happened since the look before."""
        if self.switched:
            self._after(own)
            return
        self.samples += own.samples
        self.other += stable.samples
        self._own = self._own + own
        self._stable = self._stable + stable
        if self.reference.samples >= LEAST_REFERENCE:
            if not self._own.samples or not self._stable.samples:
                return
            self._beside(self._own, self._stable)
        self.reference = self.reference + self._stable
        if self.reference.samples > MOST_REFERENCE:
            self.reference = self.reference.halved()
        self._own = Buckets()
        self._stable = Buckets()

    def _beside(self, own: Buckets, stable: Buckets) -> None:
        """A look with both sides: how many of its late samples are the candidate's?"""
        late = self.reference.near(QUANTILE)
        share = own.samples / (own.samples + stable.samples)
        others = stable.maybe_beyond(late)
        mine = Counts(own.samples, (own.surely_beyond(late) + own.maybe_beyond(late)) / 2)
        self.pairs.add(mine, Counts(stable.samples, others))
        theirs = Counts(stable.samples, others)
        costs = odds.cost(odds.MORE, share)
        inverse = odds.cost(odds.LESS, share)
        for index, ratio in enumerate(self.ratios):
            surely = own.surely_beyond(ratio * late)
            maybe = own.maybe_beyond(ratio * late)
            self._excess[index] += (surely + maybe) / 2 * (1 - share) - others * share
            self._more[index].add(Counts(own.samples, surely), theirs, costs, inverse)
            self._less[index].add(Counts(own.samples, maybe), theirs, inverse, costs)

    def _after(self, own: Buckets) -> None:
        """A look after the switch: how many samples are late, by what was usual before it?"""
        if self.reference.samples < self.rules.least or not own.samples:
            return
        if self._usual is None:
            late = self.reference.near(QUANTILE)
            usual = Counts(self.reference.samples, self.reference.maybe_beyond(late))
            low = usual.low(self.rules.false_pass / 2)
            high = usual.high(self.rules.false_alarm / 2)
            self._usual = late, usual.bad / usual.requests, low, high
        late, usual_share, low, high = self._usual
        self.samples += own.samples
        mine = Counts(own.samples, (own.surely_beyond(late) + own.maybe_beyond(late)) / 2)
        self.late.add(mine)
        self.clumps.add(mine.bad, mine.requests, mine.requests)
        over = odds.cost(odds.MORE, high)
        under = odds.cost(odds.LESS, low)
        for index, ratio in enumerate(self.ratios):
            surely = own.surely_beyond(ratio * late)
            maybe = own.maybe_beyond(ratio * late)
            self._excess[index] += (surely + maybe) / 2 - own.samples * usual_share
            self._more[index].plain(surely, own.samples, over)
            self._less[index].plain(maybe, own.samples, under)

    @property
    def excluded(self) -> float:
        """What a gate that passes has excluded."""
        return SLACK * self.allowed

    def answer(self) -> Answer:
        """What the gate says now."""
        clumping = self._clumping
        state, message = self.state()
        lows = [ratio for index, ratio in enumerate(self.ratios) if self._exceeds(index, clumping)]
        highs = [
            ratio for index, ratio in enumerate(self.ratios) if self._excludes(index, clumping)
        ]
        low = max(lows, default=None)
        high = min(highs, default=None)
        return Answer(state, self._estimate(), low, high, self.samples, self.other, message)

    def state(self) -> tuple[State, str]:
        """Whether it passes, and why."""
        least = self.rules.least
        allowed = self.ratios.index(self.allowed)
        counts = f"candidate {self.samples:.0f}, stable {self.other:.0f}"
        if min(self.samples, self.other) < least:
            return "Inconclusive", f"too few samples to judge: {counts}, {least:.0f} are needed"
        if not (self.clumps if self.switched else self.pairs.clumps).judgeable:
            return "Inconclusive", f"too few looks with samples to judge: {LEAST_BLOCKS} are needed"
        clumping = self._clumping
        said = f"samples: {counts}"
        if self._exceeds(allowed, clumping):
            return "Failed", said
        if self._excess[allowed] > 0:
            return "Inconclusive", f"{said}; that it is slower may be chance"
        if self._excludes(self.ratios.index(self.excluded), clumping):
            return "Passed", f"{said}; {self.excluded:.4g} times stable's is excluded"
        return "Inconclusive", f"{said}; {self.excluded:.4g} times stable's is not excluded yet"

    @property
    def _clumping(self) -> float:
        return self.clumps.factor(self.late.variance) if self.switched else self.pairs.clumping

    def _exceeds(self, index: int, clumping: float) -> bool:
        """Whether the ratio of this index is surely exceeded.
        After the switch, half of the error is stable's."""
        return self._more[index].evidence(clumping) >= log(
            (1 + self.switched) / self.rules.false_alarm
        )

    def _excludes(self, index: int, clumping: float) -> bool:
        """Whether the candidate's ratio is surely below that of this index."""
        return self._less[index].evidence(clumping) >= log(
            (1 + self.switched) / self.rules.false_pass
        )

    def _estimate(self) -> float | None:
        """The ratio at which the candidate has its share of late samples, no more and no less."""
        for index in range(1, len(self.ratios)):
            over = self._excess[index - 1]
            under = self._excess[index]
            if over > 0 >= under:
                part = over / (over - under)
                return self.ratios[index - 1] * exp(
                    part * log(self.ratios[index] / self.ratios[index - 1])
                )
        return None
