"""Is a candidate slower than stable under the same short load? Blocks in turns, compared in pairs.
Pure.

A pair of blocks gives one ratio, and its logarithms one mean with an interval by Student's t
(1908): both blocks have the same minute of the machine, so that a bad one has no effect. The number
of blocks is fixed beforehand and they are looked at once, at their end: this needs no sequential
test. The quantile of t is Cornish and Fisher's expansion (Abramowitz, Stegun 1964, 26.7.5), within
0.3 % of the tables for the five blocks and more that there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import NormalDist, fmean, stdev

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import LoadProbe
from llm_operator.plans.evidence.trials import SLACK, Rules
from llm_operator.state import ProbeOutcome
from llm_runtime.contract import LoadFigures

NAME = "loadProbe"
BLOCKS = 10
"""Of each side."""
LEAST_BLOCKS = 5
"""With an answer on both sides."""
LEAST = 1e-9
"""Seconds, or tokens a second, below which a figure is none: nothing is measured as finely."""
BUSY = 0.1
"""Share of stable's looks with clients' requests above which the message tells of them."""


@dataclass(frozen=True)
class Compared:
    """One figure of both sides: how many times stable's the candidate's is, where more is worse."""

    title: str
    allowed: float
    ratio: float
    low: float
    high: float

    @property
    def state(self) -> str:
        """Whether it passes: as the gates on traffic,
        what passes has excluded SLACK times the allowed ratio."""
        if self.low > self.allowed:
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
    compared = [each for each in _compared(gate, found.blocks) if each is not None]
    if found.message or len(compared) < _asked(gate):
        few = (
            f"too few of the {len(found.blocks)} blocks had answers: more seconds or fewer tokens"
            " would have"
        )
        return GateVerdict(name=NAME, state="Inconclusive", message=found.message or few)
    order = ("Failed", "Inconclusive", "Passed")
    worst = min(compared, key=lambda each: (order.index(each.state), -each.ratio / each.allowed))
    busy = fmean(stable.busy for _, stable in found.blocks)
    meanwhile = (
        f"; stable's pod answered clients in {busy:.0%} of the time, which makes it look slower"
    )
    note = meanwhile if busy > BUSY else ""
    return GateVerdict.model_validate(
        {
            "name": NAME,
            "state": worst.state,
            "estimate": f"{worst.ratio:.4g}",
            "threshold": f"{worst.allowed:.4g}",
            "low": f"{worst.low:.4g}",
            "high": f"{worst.high:.4g}",
            "samples": sum(own.answers for own, _ in found.blocks),
            "stable_samples": sum(stable.answers for _, stable in found.blocks),
            "message": "; ".join(each.told for each in compared) + note,
        }
    )


def _asked(gate: LoadProbe) -> int:
    ratios = (
        gate.max_time_to_first_token_ratio,
        gate.max_inter_token_ratio,
        gate.min_tokens_per_second_ratio,
    )
    return sum(each is not None for each in ratios)


def _compared(
    gate: LoadProbe, blocks: Sequence[tuple[LoadFigures, LoadFigures]]
) -> list[Compared | None]:
    """By each ratio that the gate names; None where there are too few blocks with answers."""
    found = []
    sure = Rules(false_alarm=Rules.false_alarm / max(1, _asked(gate)))
    if (allowed := gate.max_time_to_first_token_ratio) is not None:
        pairs = [
            _ratio(own.first_token_seconds, stable.first_token_seconds) for own, stable in blocks
        ]
        found.append(_by_pairs("first token", allowed, pairs, sure))
    if (allowed := gate.max_inter_token_ratio) is not None:
        pairs = [
            _ratio(own.inter_token_seconds, stable.inter_token_seconds) for own, stable in blocks
        ]
        found.append(_by_pairs("between tokens", allowed, pairs, sure))
    if (least := gate.min_tokens_per_second_ratio) is not None:
        pairs = [
            _ratio((stable.tokens_per_second,), (own.tokens_per_second,)) for own, stable in blocks
        ]
        found.append(_by_pairs("time for a token of all", 1 / least, pairs, sure))
    return found


def _ratio(own: tuple[float, ...] | None, stable: tuple[float, ...] | None) -> float | None:
    return log(own[0] / stable[0]) if own and stable and min(own[0], stable[0]) > LEAST else None


def _by_pairs(
    title: str, allowed: float, pairs: Sequence[float | None], sure: Rules
) -> Compared | None:
    logs = [each for each in pairs if each is not None]
    if len(logs) < LEAST_BLOCKS:
        return None
    middle = fmean(logs)
    spread = stdev(logs) / sqrt(len(logs))
    low = middle - student(1 - sure.false_alarm, len(logs) - 1) * spread
    high = middle + student(1 - sure.false_pass, len(logs) - 1) * spread
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
