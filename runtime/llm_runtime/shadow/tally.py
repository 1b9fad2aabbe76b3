"""What became of the copies to one candidate, as metrics. Another candidate begins at zero."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
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


class Tally(Collector):
    """Counts of one candidate. It is used by one thread, and so has no lock."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, candidate: str) -> None:
        """Count anew, for this candidate."""
        self.candidate = candidate
        self._results = dict[str, int]()
        self._compared = dict[str, int]()
        self._differing = dict[str, float]()
        self._fine = dict[tuple[str, str, int], int]()

    def result(self, result: str) -> None:
        """Note how one copy ended."""
        self._results[result] = self._results.get(result, 0) + 1

    def compared(self, differences: Mapping[str, float]) -> None:
        """Note one comparison."""
        for what, difference in differences.items():
            self._compared[what] = self._compared.get(what, 0) + 1
            self._differing[what] = self._differing.get(what, 0.0) + difference

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
        self._fine[key] = self._fine.get(key, 0) + 1

    def collect(self) -> Iterable[Metric]:
        candidate = self.candidate
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
        for result, count in self._results.items():
            copies.add_metric([candidate, result], count)
        for what, count in self._compared.items():
            compared.add_metric([candidate, what], count)
            differing.add_metric([candidate, what], self._differing[what])
        for (side, what, bucket), count in sorted(self._fine.items()):
            fine.add_metric([candidate, side, what, BOUNDS[bucket]], count)
        yield from (copies, compared, differing, fine)
