"""Prometheus metrics, in their own registry.
Label values come from small fixed sets: routes, not paths; no keys."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from llm_runtime.contract import (
    FINE_BOUNDS_SECONDS,
    FINE_BOUNDS_TOKENS,
    METRIC_ADAPTER_FAILED,
    METRIC_ADAPTER_LOADED,
    METRIC_ANSWER_TOKENS_FINE,
    METRIC_API_REQUESTS,
    METRIC_FIRST_TOKEN,
    METRIC_FIRST_TOKEN_FINE,
    METRIC_GPU_MEMORY,
    METRIC_INTER_TOKEN,
    METRIC_INTER_TOKEN_FINE,
    METRIC_KV_CACHE_USAGE,
    METRIC_MEMORY,
    METRIC_REQUESTS_RUNNING,
    METRIC_REQUESTS_WAITING,
    METRIC_TOKENS_PER_SECOND,
    TOKENS_PER_SECOND_WINDOW,
)

METHODS = frozenset({"GET", "POST", "OPTIONS", "HEAD", "PUT", "PATCH", "DELETE"})

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class EngineFigures(Protocol):
    """The part of `request.EngineStats` that is exposed."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def kv_cache_usage_ratio(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_prompt_tokens(self) -> int: ...
    @property
    def guessed_tokens(self) -> int: ...
    @property
    def right_tokens(self) -> int: ...
    @property
    def gpu_memory_bytes(self) -> int | None: ...
    @property
    def load_seconds(self) -> float: ...
    @property
    def load_peak_bytes(self) -> int: ...


class Rate:
    """Tokens per second, over the last ten complete seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()

    def add(self, count: int) -> None:
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0])
            self._forget(second)
        self._seconds[-1][1] += count

    def value(self) -> float:
        now = int(self._clock())
        self._forget(now)
        # Without the current second: it is incomplete, and would lower the figure at every scrape.
        return (
            sum(count for second, count in self._seconds if second != now)
            / TOKENS_PER_SECOND_WINDOW
        )

    def _forget(self, now: int) -> None:
        while self._seconds and self._seconds[0][0] < now - TOKENS_PER_SECOND_WINDOW:
            self._seconds.popleft()


class Tally(Collector):
    """A histogram in seconds for events of every token.
    It is used by one thread, and so has no lock."""

    def __init__(self, name: str, documentation: str, buckets: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value` `count` times."""
        self._counts[bisect_left(self._buckets, value)] += count
        self._sum += value * count

    def collect(self) -> Iterable[Metric]:
        bounds = [*map(floatToGoString, self._buckets), "+Inf"]
        sums = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(
            self._name, self._documentation, buckets=sums, sum_value=self._sum
        )


class FineTally(Collector):
    """Samples in buckets of 5 %, by which two versions are compared.
    Only buckets that were hit make a series."""

    def __init__(
        self, name: str, documentation: str, bounds: tuple[float, ...] = FINE_BOUNDS_SECONDS
    ) -> None:
        self._name = name
        self._bounds = bounds
        self._documentation = documentation
        self._counts: dict[int, int] = {}

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value` as often as it happened."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] = self._counts.get(bucket, 0) + count

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=["le"])
        for bucket, count in sorted(self._counts.items()):
            bound = floatToGoString((*self._bounds, inf)[bucket])  # type: ignore[no-untyped-call]
            family.add_metric([bound], count)
        yield family


@dataclass(frozen=True, slots=True)
class Sources:
    """What is asked at each scrape; None for a part that this server does not have."""

    engine: Callable[[], EngineFigures | None] = lambda: None
    """None while no model is loaded."""
    database_away: Callable[[], bool] | None = None
    adapters: Callable[[], Iterable[tuple[str, str, bool]]] | None = None
    """Name, version and whether it is loaded, where a list of adapters is followed."""
    failed_adapters: Callable[[], Iterable[tuple[str, str, str]]] | None = None
    """Name, wanted version and reason."""
    cache_entries: Callable[[], int] = lambda: 0
    memory_bytes: Callable[[], int] = lambda: 0
    """Resident memory of all processes."""


class Metrics:
    """Everything under `/metrics`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        registry = self.registry = CollectorRegistry()
        self.api_requests = Counter(
            METRIC_API_REQUESTS,
            "Requests to generation endpoints.",
            ["endpoint", "status"],
            registry=registry,
        )
        self.api_duration = Histogram(
            "api_request_duration_seconds", "Time to the end of a generation request's answer.", ["endpoint"],
            buckets=REQUEST_BUCKETS, registry=registry,
        )  # fmt: skip
        self.http_requests = Counter(
            "http_requests_total",
            "HTTP requests.",
            ["method", "endpoint", "status"],
            registry=registry,
        )
        self.http_duration = Histogram(
            "http_request_duration_seconds", "Time to the end of an HTTP answer.", ["method", "endpoint"],
            buckets=REQUEST_BUCKETS, registry=registry,
        )  # fmt: skip
        self.errors = Counter("api_errors_total", "Error answers.", ["type"], registry=registry)
        self.tokens = Counter(
            "tokens_generated_total", "Tokens generated.", ["model"], registry=registry
        )
        self.prompt_tokens = Counter(
            "prompt_tokens_total", "Prompt tokens admitted.", ["model"], registry=registry
        )
        self.cache_lookups = Counter(
            "llm_completion_cache_lookups_total", "Deterministic requests, by what the completion cache had for them.",
            ["result"], registry=registry,
        )  # fmt: skip
        self.cache_entries = Gauge(
            "llm_completion_cache_entries", "Answers in memory.", registry=registry
        )
        self.first_token = Histogram(
            METRIC_FIRST_TOKEN, "From admission to the first token.",
            buckets=FIRST_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self.inter_token = Tally(
            METRIC_INTER_TOKEN, "Between two tokens of one sequence.", INTER_TOKEN_BUCKETS
        )
        self.first_token_fine = FineTally(
            METRIC_FIRST_TOKEN_FINE,
            "Samples of the time to the first token, by bucket of 5 %, not cumulative.",
        )
        self.inter_token_fine = FineTally(
            METRIC_INTER_TOKEN_FINE,
            "Samples of the time between two tokens, by bucket of 5 %, not cumulative.",
        )
        self.answer_tokens_fine = FineTally(
            METRIC_ANSWER_TOKENS_FINE,
            "Answers by their number of tokens, by bucket of 5 %, not cumulative. Those from a cache do not count.",
            FINE_BOUNDS_TOKENS,
        )
        for each in (
            self.inter_token,
            self.first_token_fine,
            self.inter_token_fine,
            self.answer_tokens_fine,
        ):
            registry.register(each)
        self.usage_written = Counter(
            "llm_usage_rows_written_total", "Usage rows stored.", registry=registry
        )
        self.usage_dropped = Counter(
            "llm_usage_rows_dropped_total", "Usage rows lost.", registry=registry
        )
        self.usage_pending = Gauge(
            "llm_usage_rows_pending", "Usage rows not stored yet.", registry=registry
        )
        self.usage_flush = Histogram(
            "llm_usage_flush_seconds", "Attempts to store a batch of usage rows.",
            buckets=REQUEST_BUCKETS, registry=registry,
        )  # fmt: skip
        self.rate = Rate(clock)
        self._requests: dict[tuple[str, str, int, bool], tuple[list[Counter], list[Histogram]]] = {}
        """Metrics of a request by its labels,
        cached because looking up labels costs more than counting."""

    def watch(self, sources: Sources) -> None:
        """Ask `sources` at each scrape from now on. Call it once."""
        self.cache_entries.set_function(sources.cache_entries)
        self.registry.register(_Live(self.rate, sources))

    def count_request(
        self, method: str, endpoint: str, status: int, seconds: float, *, api: bool
    ) -> None:
        method = method if method in METHODS else "other"
        key = method, endpoint, status, api
        if key not in self._requests:
            counters = [self.http_requests.labels(method, endpoint, status)]
            histograms = [self.http_duration.labels(method, endpoint)]
            if api:
                counters.append(self.api_requests.labels(endpoint, status))
                histograms.append(self.api_duration.labels(endpoint))
            self._requests[key] = counters, histograms
        counters, histograms = self._requests[key]
        for counter in counters:
            counter.inc()
        for histogram in histograms:
            histogram.observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Live(Collector):
    """Metrics that are read at each scrape."""

    def __init__(self, rate: Rate, sources: Sources) -> None:
        self._rate = rate
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        sources = self._sources
        figures = sources.engine()
        loaded = float(figures is not None)
        yield GaugeMetricFamily("model_loaded", "1 once the model answers requests.", value=loaded)
        yield GaugeMetricFamily(
            METRIC_TOKENS_PER_SECOND,
            "Tokens generated per second, over ten seconds.",
            value=self._rate.value(),
        )
        memory = float(sources.memory_bytes())
        yield GaugeMetricFamily(
            METRIC_MEMORY, "Memory of the server's processes, without the GPU's.", value=memory
        )
        if sources.database_away:
            text = "1 unless the database did not answer when it was asked last."
            yield GaugeMetricFamily(
                "llm_database_up", text, value=float(not sources.database_away())
            )
        if sources.adapters:
            text = "1 for a LoRA adapter's version that answers, 0 for one that is wanted and does not yet."
            family = GaugeMetricFamily(METRIC_ADAPTER_LOADED, text, labels=["adapter", "version"])
            for name, version, is_loaded in sources.adapters():
                family.add_metric([name, version], float(is_loaded))
            yield family
        if sources.failed_adapters:
            text = "1 for a version of a LoRA adapter that is wanted and could not be loaded."
            family = GaugeMetricFamily(
                METRIC_ADAPTER_FAILED, text, labels=["adapter", "version", "reason"]
            )
            for labels in sources.failed_adapters():
                family.add_metric(labels, 1.0)
            yield family
        if figures:
            yield from _engine_gauges(figures)
            yield from _engine_counters(figures)


def _engine_gauges(figures: EngineFigures) -> Iterable[GaugeMetricFamily]:
    for name, text, value in (
        (METRIC_REQUESTS_RUNNING, "Sequences in the batch.", figures.running),
        (METRIC_REQUESTS_WAITING, "Sequences that wait for a place in the batch.", figures.waiting),
        (
            METRIC_KV_CACHE_USAGE,
            "Part of the key-value cache in use, 0 to 1.",
            figures.kv_cache_usage_ratio,
        ),
        ("llm_batch_size", "Sequences in the last step; 0 while nothing runs.", figures.batch_size),
        (
            "llm_model_load_seconds",
            "From the first file to the end of the first generation.",
            figures.load_seconds,
        ),
        (
            "llm_model_load_peak_bytes",
            "Memory that loading took at once, without mapped files.",
            figures.load_peak_bytes,
        ),
    ):
        yield GaugeMetricFamily(name, text, value=float(value))
    if figures.gpu_memory_bytes is not None:
        memory = float(figures.gpu_memory_bytes)
        yield GaugeMetricFamily(METRIC_GPU_MEMORY, "GPU memory in use by the engine.", value=memory)


def _engine_counters(figures: EngineFigures) -> Iterable[CounterMetricFamily]:
    for name, text, value in (
        ("llm_engine_steps", "Steps of the engine.", figures.steps),
        ("llm_prompt_tokens", "Prompt tokens that the engine was given.", figures.prompt_tokens),
        (
            "llm_prefix_cache_tokens",
            "Prompt tokens found in the prefix cache.",
            figures.cached_prompt_tokens,
        ),
        (
            "llm_guessed_tokens",
            "Tokens of answers that were guessed, and checked several in a step.",
            figures.guessed_tokens,
        ),
        (
            "llm_guessed_tokens_right",
            "Guessed tokens that were right.",
            figures.right_tokens,
        ),
    ):
        yield CounterMetricFamily(name, text, value=float(value))
