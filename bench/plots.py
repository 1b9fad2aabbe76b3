"""The page's plots, for every run of `peers`:
speed and waiting times over the number of clients, by server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.results import SPEED, Run
from bench.servers import TITLES

COLOURS = {"ours": "#1f6feb", "transformers": "#b0872c", "vllm": "#7a7a7a"}
Key = tuple[str, str, str]


def draw(runs: Sequence[Run], folder: Path) -> dict[Key, list[str]]:
    """Write the plots; returns the file names of each run."""
    return {run.key: [_draw(run, folder)] for run in runs if run.scenario == "peers" and run.rows}


def _draw(run: Run, folder: Path) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    # Reproducible files for the same figures, with text kept as text.
    mpl.rcParams.update({"svg.hashsalt": "llm-operator", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, (speed, gap, first) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for who, levels in series(run).items():
        _line(speed, run, who, levels, SPEED, "-")
        _line(gap, run, who, levels, "itl_p50_ms", "-")
        _line(gap, run, who, levels, "itl_p99_ms", ":")
        _line(first, run, who, levels, "ttft_p50_ms", "-")
    ticks = sorted({clients for levels in series(run).values() for clients in levels})
    _frame(speed, "tokens per second", ticks, logarithmic=False)
    _frame(gap, "between tokens, ms: p50 —, p99 ···", ticks, logarithmic=True)
    _frame(first, "first token p50, ms", ticks, logarithmic=True)
    speed.legend(frameon=False)
    name = f"peers-{run.model}-{run.dtype}.svg"
    figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return name


def series(run: Run) -> dict[str, list[int]]:
    """Every server with the numbers of clients at which it was measured."""
    found: dict[str, list[int]] = {}
    for row in run.rows:
        who, _, clients = row.rpartition("@")
        found.setdefault(who, []).append(int(clients))
    return {who: sorted(levels) for who, levels in found.items()}


def _line(axes: Any, run: Run, who: str, levels: Sequence[int], metric: str, style: str) -> None:
    values = [(clients, run.value(f"{who}@{clients}", metric)) for clients in levels]
    measured = [(clients, value) for clients, value in values if value]
    if not measured:
        return
    axes.plot(
        *zip(*measured, strict=True),
        style,
        marker=".",
        color=COLOURS.get(who),
        label=TITLES.get(who, who),
    )


def _frame(axes: Any, title: str, ticks: Sequence[int], *, logarithmic: bool) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("clients")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, labels=[str(clients) for clients in ticks], minor=False)
    if logarithmic and axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    elif not logarithmic:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
