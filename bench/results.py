"""The results of a run, as in `engine.json`: raw rounds, medians, ratios and targets. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.stats import median, ratio, rounded

Figures = dict[str, float]
"""One round of one row: tokens_per_second, ttft_p50_ms, …"""


@dataclass
class Run:
    """One scenario with one model in one number format.
    `rows` holds every round of every way that was measured."""

    scenario: str
    model: str
    dtype: str
    commit: str = ""
    date: str = ""
    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[Figures]] = field(default_factory=dict)
    """Key: who, "@", number of clients."""
    memory_mib: dict[str, int] = field(default_factory=dict)
    start_seconds: dict[str, float] = field(default_factory=dict)
    """From each server's process to its readiness."""
    absent: dict[str, str] = field(default_factory=dict)
    """Servers that could not be started, and why."""
    commands: dict[str, str] = field(default_factory=dict)
    """How each server was started, without paths."""
    skipped: str = ""
    """Why nothing was measured; empty otherwise."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.scenario, self.model, self.dtype

    @property
    def rounds(self) -> int:
        return max(map(len, self.rows.values()), default=0)

    def add(self, who: str, clients: int, figures: Figures) -> None:
        self.rows.setdefault(f"{who}@{clients}", []).append(figures)

    def value(self, row: str, metric: str) -> float | None:
        """The median of a metric over the rounds."""
        return rounded(
            median([figures[metric] for figures in self.rows.get(row, ()) if metric in figures])
        )

    def ratio(self, row: str, reference: str, metric: str) -> float | None:
        """The median over rounds of a metric's ratio between two rows:
        neighbours in time are compared."""
        pairs = zip(self.rows.get(row, ()), self.rows.get(reference, ()), strict=False)
        ratios = [ratio(a.get(metric), b.get(metric)) for a, b in pairs]
        return rounded(median([value for value in ratios if value is not None]), 3)

    def as_json(self) -> dict[str, Any]:
        """With medians and checked targets beside the rounds they come from."""
        metrics = {
            row: sorted({name for figures in each for name in figures})
            for row, each in self.rows.items()
        }
        medians = {
            row: {name: self.value(row, name) for name in names} for row, names in metrics.items()
        }
        rows = {
            row: [{name: rounded(value) for name, value in figures.items()} for figures in each]
            for row, each in self.rows.items()
        }
        return {
            **asdict(self),
            "rows": rows,
            "medians": medians,
            "targets": [asdict(found) for found in verdicts(self)],
        }


def from_json(record: Mapping[str, Any]) -> Run:
    """Read what `as_json` wrote. Everything that can be computed is computed again."""
    return Run(
        **{name: value for name, value in record.items() if name in Run.__dataclass_fields__}
    )


def merged(old: Sequence[Run], new: Sequence[Run]) -> list[Run]:
    """Replace the old run of the same scenario, model and number format by a new one."""
    return sorted({run.key: run for run in (*old, *new)}.values(), key=lambda run: run.key)


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio between two rows of one scenario, and the bound that it should keep."""

    title: str
    scenario: str
    metric: str
    row: str
    reference: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


SPEED = "tokens_per_second"
TTFT = "ttft_p50_ms"
ITL = "itl_p99_ms"

TARGETS = (
    Target("tokens/s, 32 clients, over transformers", "peers", SPEED, "ours@32", "transformers@32", at_least=3.0),
    Target("tokens/s, 32 clients, over vLLM", "peers", SPEED, "ours@32", "vllm@32", at_least=1.0),
    Target("between tokens p99, 32 clients, over vLLM", "peers", ITL, "ours@32", "vllm@32", at_most=1.0),
    Target("first token p50, 32 clients, over transformers", "peers", TTFT, "ours@32", "transformers@32", at_most=1.0),
    Target("first token p50, 32 clients, over vLLM", "peers", TTFT, "ours@32", "vllm@32", at_most=1.0),
    Target("tokens/s, one client, over llama.cpp", "llamacpp", SPEED, "ours@1", "llama-cpp@1", at_least=1.0),
    Target("tokens/s, 32 clients, over llama.cpp", "llamacpp", SPEED, "ours@32", "llama-cpp@32", at_least=1.5),
    Target("first token p50, 32 clients, over llama.cpp", "llamacpp", TTFT, "ours@32", "llama-cpp@32", at_most=1.0),
    Target("between tokens p99, 32 clients, over llama.cpp", "llamacpp", ITL, "ours@32", "llama-cpp@32", at_most=0.5),
    Target("tokens/s, one client, over `generate`", "single", SPEED, "ours@1", "generate@1", at_least=1.0),
    Target("tokens/s over HTTP / in process, 32 clients", "inprocess", SPEED, "ours@32", "engine@32", at_least=0.92),
    Target("tokens/s, 8 adapters / base only, 32 clients", "adapters", SPEED, "mixed@32", "base@32", at_least=0.8),
    Target("time to first token, new / known prefix", "prefix", TTFT, "new@1", "known@1", at_least=5.0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one target that the run measured."""

    title: str
    bound: str
    ratio: float
    met: bool


def verdicts(run: Run) -> list[Verdict]:
    """The results of all targets that this run measured."""
    found = []
    for target in TARGETS:
        if target.scenario == run.scenario:
            value = run.ratio(target.row, target.reference, target.metric)
            if value is not None:
                found.append(Verdict(target.title, target.bound, value, target.met(value)))
    return found
