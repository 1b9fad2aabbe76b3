"""What became of the copies to each candidate, as metrics."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from math import inf

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from llm_runtime.contract import (
    FINE_BOUNDS_SECONDS,
    METRIC_SHADOW_COMPARED,
    METRIC_SHADOW_COPIES,
    METRIC_SHADOW_DIFFERENCE,
    METRIC_SHADOW_FINE,
)
from llm_runtime.shadow.agreement import ModelAnswer

BOUNDS = tuple(floatToGoString(bound) for bound in (*FINE_BOUNDS_SECONDS, inf))  # type: ignore[no-untyped-call]


class Counts:
    """The counts of one candidate. One thread uses them, so they have no lock."""

    def __init__(self) -> None:
        self.results = dict[str, int]()
        self.comparisons = dict[str, int]()
        self.differing = dict[str, float]()
        self.fine = dict[tuple[str, str, int], int]()

    def result(self, result: str) -> None:
        """Note how one copy ended."""
        self.results[result] = self.results.get(result, 0) + 1

    def compared(self, differences: Mapping[str, float]) -> None:
        """Note one comparison."""
        for what, difference in differences.items():
            self.comparisons[what] = self.comparisons.get(what, 0) + 1
            self.differing[what] = self.differing.get(what, 0.0) + difference

    def sized(self, stable: ModelAnswer, candidate: ModelAnswer) -> None:
        """Note how long both answers were."""
        self._note("stable", "tokens", stable.tokens / 1000)
        self._note("candidate", "tokens", candidate.tokens / 1000)

    def timed(self, stable: ModelAnswer, candidate: ModelAnswer) -> None:
        """Note how long both took, a late one at least."""
        self._note("stable", "seconds", stable.seconds)
        self._note("candidate", "seconds", candidate.seconds)

    def _note(self, side: str, what: str, value: float) -> None:
        key = side, what, bisect_left(FINE_BOUNDS_SECONDS, value)
        self.fine[key] = self.fine.get(key, 0) + 1


class Tally(Collector):
    """The counts of all candidates that copies are sent to, or were last."""

    def __init__(self) -> None:
        self._counts = dict[str, Counts]()

    def follow(self, candidates: Collection[str]) -> None:
        """Count for these. What was counted for others is dropped;
        one that comes back begins at nothing."""
        if self._counts.keys() != set(candidates):
            self._counts = {each: self._counts.get(each) or Counts() for each in candidates}

    def of(self, candidate: str) -> Counts | None:
        """The counts; None for one that is not followed."""
        return self._counts.get(candidate)

    def collect(self) -> Iterable[Metric]:
        copies = CounterMetricFamily(
            METRIC_SHADOW_COPIES,
            "Copies of requests for a candidate.",
            labels=["candidate", "result"],
        )
        compared = CounterMetricFamily(
            METRIC_SHADOW_COMPARED,
            "Answers of a candidate that were compared.",
            labels=["candidate", "what"],
        )
        differing = CounterMetricFamily(
            METRIC_SHADOW_DIFFERENCE,
            "Sum of the differences of compared answers from stable's, 0 to 1 each.",
            labels=["candidate", "what"],
        )
        fine = CounterMetricFamily(
            METRIC_SHADOW_FINE,
            "Compared answers by time or thousands of tokens, in buckets of 5 %, not cumulative.",
            labels=["candidate", "side", "what", "le"],
        )
        for candidate, counts in self._counts.items():
            for result, count in counts.results.items():
                copies.add_metric([candidate, result], count)
            for what, count in counts.comparisons.items():
                compared.add_metric([candidate, what], count)
                differing.add_metric([candidate, what], counts.differing[what])
            for (side, what, bucket), count in sorted(counts.fine.items()):
                fine.add_metric([candidate, side, what, BOUNDS[bucket]], count)
        yield from (copies, compared, differing, fine)
