"""The metrics that are served, under the names that they have in the pods. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from llm_operator.state import Load
from llm_runtime import contract


@dataclass(frozen=True)
class ServedMetric:
    """A figure of each pod."""

    name: str
    of: Callable[[Load], float]
    together: Callable[[Iterable[float]], float] = sum
    """The figure of an LLMDeployment, from those of its pods."""
    window_seconds: int | None = None
    """Over which it was counted; None for what was so at its moment."""


METRICS = {
    each.name: each
    for each in (
        ServedMetric(contract.METRIC_REQUESTS_WAITING, lambda load: load.waiting),
        ServedMetric(contract.METRIC_REQUESTS_RUNNING, lambda load: load.running),
        ServedMetric(
            contract.METRIC_TOKENS_PER_SECOND,
            lambda load: load.tokens_per_second,
            window_seconds=contract.TOKENS_PER_SECOND_WINDOW,
        ),
        ServedMetric(contract.METRIC_KV_CACHE_USAGE, lambda load: load.cache_usage, fmean),
    )
}
