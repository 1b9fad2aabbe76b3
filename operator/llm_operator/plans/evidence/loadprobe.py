"""Is a candidate slower than stable under the same short load? Blocks in turns, compared in pairs.
Pure.

Each pair of blocks gives one ratio. The logarithms of the ratios give a mean and an interval by
Student's t (1908). Both blocks of a pair run in the same minute of the machine, so a bad minute has
no effect. The number of blocks is fixed beforehand and they are looked at once, at their end: this
needs no sequential test. The quantile of t is Cornish and Fisher's expansion (Abramowitz, Stegun
1964, 26.7.5), within 0.3 % of the tables for the five blocks and more that there are.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from statistics import NormalDist, fmean, stdev

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import LoadProbe
from llm_operator.crds.status import LoadFigure, LoadStatus
from llm_operator.plans.evidence.trials import SLACK, Rules
from llm_operator.state import ProbeOutcome
from llm_runtime.contract import LoadFigures

NAME = "loadProbe"
BLOCKS = 10
"""Number of blocks of each side."""
LEAST_BLOCKS = 5
"""With an answer on both sides."""
LEAST = 1e-9
"""Smallest figure that counts, in seconds or tokens per second: nothing is measured more finely."""
BUSY = 0.1
"""By how much the share of looks with clients' requests may be larger for stable;
beyond it the message tells of them."""


@dataclass(frozen=True)
class Compared:
    """One figure of both sides: how many times stable's the candidate's is, where more is worse."""

    title: str
    allowed: float
    ratio: float
    low: float
    high: float
    surely: float = 1.0
    """How many times more than allowed it must be to fail."""

    @property
    def state(self) -> str:
        """Whether it passes. As with the gates on traffic,
        a pass excludes SLACK times the allowed ratio."""
        if self.low > self.surely * self.allowed:
            return "Failed"
        return (
            "Passed"
            if self.ratio <= self.allowed and self.high < SLACK * self.allowed
            else "Inconclusive"
        )

    @property
    def told(self) -> str:
        ends = f"{self.low:.3g} to {self.high:.3g}, allowed {self.allowed:.3g}"
        return f"{self.title} {self.ratio:.3g} times stable's ({ends})"


def verdict(gate: LoadProbe, found: ProbeOutcome) -> GateVerdict:
    """What the load says."""
    if found.kept is not None:
        return found.kept
    if found.waiting:
        return GateVerdict(name=NAME, state="Waiting", message=found.waiting)
    load = _load(gate, found.blocks)
    compared = [each for each in _compared(gate, found, load) if each is not None]
    if found.message or len(compared) < len(_allowed(gate)):
        few = (
            f"too few of the {len(found.blocks)} blocks had answers: more seconds or fewer tokens"
            " would have"
        )
        said = found.message or few
        return GateVerdict(name=NAME, state="Inconclusive", load=load, message=said)
    order = ("Failed", "Inconclusive", "Passed")
    worst = min(compared, key=lambda each: (order.index(each.state), -each.ratio / each.allowed))
    pairs = [(own, stable) for own, stable in found.blocks if stable is not None]
    return GateVerdict.model_validate(
        {
            "name": NAME,
            "state": worst.state,
            "estimate": f"{worst.ratio:.4g}",
            "threshold": f"{worst.allowed:.4g}",
            "low": f"{worst.low:.4g}",
            "high": f"{worst.high:.4g}",
            "samples": sum(own.answers for own, _ in found.blocks),
            "stable_samples": sum(stable.answers for _, stable in pairs) if pairs else None,
            "load": load,
            "message": "; ".join(each.told for each in compared) + _note(pairs),
        }
    )


def _note(pairs: Sequence[tuple[LoadFigures, LoadFigures]]) -> str:
    """What the reader has to know of stable's side."""
    if not pairs:
        return (
            "; stable has no pod to ask, and is compared by the figures of its own promotion: to"
            f" fail, the candidate must be {SLACK:g} times worse than allowed"
        )
    busy = fmean(stable.busy for _, stable in pairs)
    # Clients who are there in both sides' blocks favour neither.
    if busy - fmean(own.busy for own, _ in pairs) <= BUSY:
        return ""
    return f"; stable's pod answered clients in {busy:.0%} of the time, which makes it look slower"


@dataclass(frozen=True)
class _Figure:
    """One of those that are compared, where more is worse."""

    field: str
    """Name of the figure in LoadStatus."""
    title: str
    read: Callable[[LoadFigures], float | None]


_FIGURES = (
    _Figure("first_token_seconds", "first token", lambda each: _median(each.first_token_seconds)),
    _Figure(
        "inter_token_seconds", "between tokens", lambda each: _median(each.inter_token_seconds)
    ),
    _Figure(
        "seconds_per_token",
        "time for a token of all",
        lambda each: 1 / each.tokens_per_second if each.tokens_per_second > LEAST else None,
    ),
)


def _median(pair: tuple[float, ...] | None) -> float | None:
    return pair[0] if pair and pair[0] > LEAST else None


def _allowed(gate: LoadProbe) -> dict[str, float]:
    """Largest ratio by field, of those that the gate names."""
    least = gate.min_tokens_per_second_ratio
    found = {
        "first_token_seconds": gate.max_time_to_first_token_ratio,
        "inter_token_seconds": gate.max_inter_token_ratio,
        "seconds_per_token": None if least is None else 1 / least,
    }
    return {field: most for field, most in found.items() if most is not None}


def _load(
    gate: LoadProbe, blocks: Sequence[tuple[LoadFigures, LoadFigures | None]]
) -> LoadStatus | None:
    """The candidate's own figures, for the candidates after it."""
    found = dict[str, LoadFigure]()
    for each in _FIGURES:
        logs = [log(figure) for own, _ in blocks if (figure := each.read(own)) is not None]
        if len(logs) >= LEAST_BLOCKS:
            found[each.field] = LoadFigure(
                middle=_rounded(exp(fmean(logs))), spread=_rounded(stdev(logs)), blocks=len(logs)
            )
    if not found:
        return None
    return LoadStatus(
        concurrency=gate.concurrency,
        prompt_tokens=gate.prompt_tokens,
        max_tokens=gate.max_tokens,
        first_token_seconds=found.get("first_token_seconds"),
        inter_token_seconds=found.get("inter_token_seconds"),
        seconds_per_token=found.get("seconds_per_token"),
    )


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def same(gate: LoadProbe, kept: Iterable[LoadStatus]) -> LoadStatus | None:
    """The figures that were made by the same load."""
    load = (gate.concurrency, gate.prompt_tokens, gate.max_tokens)
    fits = (
        each for each in kept if (each.concurrency, each.prompt_tokens, each.max_tokens) == load
    )
    return next(fits, None)


def _compared(
    gate: LoadProbe, found: ProbeOutcome, load: LoadStatus | None
) -> list[Compared | None]:
    """By each ratio that the gate names; None where there are too few blocks with answers."""
    allowed = _allowed(gate)
    sure = Rules(false_alarm=Rules.false_alarm / max(1, len(allowed)))
    figures = [each for each in _FIGURES if each.field in allowed]
    if found.before is not None:
        return [
            _by_itself(
                each.title,
                allowed[each.field],
                getattr(load, each.field, None),
                getattr(found.before, each.field),
                sure,
            )
            for each in figures
        ]
    return [
        _by_pairs(
            each.title,
            allowed[each.field],
            [_ratio(each.read(own), each.read(stable)) for own, stable in found.blocks if stable],
            sure,
        )
        for each in figures
    ]


def _ratio(own: float | None, stable: float | None) -> float | None:
    return log(own / stable) if own is not None and stable is not None else None


def _by_pairs(
    title: str, allowed: float, pairs: Sequence[float | None], sure: Rules
) -> Compared | None:
    logs = [each for each in pairs if each is not None]
    if len(logs) < LEAST_BLOCKS:
        return None
    spread = stdev(logs) / sqrt(len(logs))
    return _between(title, allowed, fmean(logs), spread, len(logs), sure)


def _by_itself(
    title: str, allowed: float, own: LoadFigure | None, before: LoadFigure | None, sure: Rules
) -> Compared | None:
    """Compare two means of different times, and perhaps of different machines. The spread within
    one run does not show what that does to them, so SLACK is allowed for it."""
    if own is None or before is None:
        return None
    spread = sqrt(own.spread**2 / own.blocks + before.spread**2 / before.blocks)
    middle = log(own.middle / before.middle)
    fewest = min(own.blocks, before.blocks)
    return replace(_between(title, allowed, middle, spread, fewest, sure), surely=SLACK)


def _between(
    title: str, allowed: float, middle: float, spread: float, blocks: int, sure: Rules
) -> Compared:
    low = middle - student(1 - sure.false_alarm, blocks - 1) * spread
    high = middle + student(1 - sure.false_pass, blocks - 1) * spread
    return Compared(title, allowed, exp(middle), exp(low), exp(high))


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
