"""`docs/benchmarks/`: engine.json is the record, engine.md the page made from nothing else.
Pure but for `write`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import plots
from bench.results import SPEED, Run, from_json, merged, verdicts
from bench.servers import TITLES

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
JSON = "engine.json"
PAGE = "engine.md"

MODELS = {
    "smollm2": "SmolLM2-135M-Instruct",
    "small": "random Llama, 31.6 M parameters",
}
WAYS = {
    "ours": "llm-runtime over HTTP",
    "generate": "`model.generate`, one by one",
    "static": "`model.generate`, one static batch",
    "engine": "the engine, called directly",
    "base": "all requests to the base model",
    "mixed": "requests to 8 adapters in turn",
    "new": "first request with a prefix",
    "known": "later requests with it",
}
HEADINGS = {
    "peers": "Beside its peers",
    "llamacpp": "Beside llama.cpp",
    "single": "One client beside `generate`",
    "inprocess": "What HTTP costs",
    "adapters": "LoRA adapters",
    "prefix": "A shared prefix of 1,000 tokens",
}
METRICS = {
    SPEED: "tokens/s",
    "ttft_p50_ms": "first token p50, ms",
    "ttft_p99_ms": "p99",
    "itl_p50_ms": "between tokens p50, ms",
    "itl_p99_ms": "p99",
}

METHOD = """\
Every figure is the median over rounds. Inside a round the ways take turns on the same requests; each ratio is the
median of the rounds' own ratios, so that a machine that slows down slows both sides. The clients are a process of their
own on the same machine, which only stamps bytes with the time while it measures. All servers stay loaded; those that
are not measured are stopped (SIGSTOP), and another one is first in each round.

Requests are greedy and streamed, over `/v1/completions`. Random words make prompts of 16 to 200 tokens, answers have 16
to 128, both from a seed and new in each round. A client sends its next request when the last is answered. The models
have no end-of-sequence token, so that every server makes the tokens asked for; one that does not is left out. "First
token" is the time from sending to the first text, "between tokens" every time between two pieces of text of one answer.
Memory is the peak of the whole process tree with shared pages counted once; most of it is the cache that a server sets
aside."""


def write(new: Sequence[Run], folder: Path = FOLDER) -> Path:
    """Merge runs into the record and make the page again; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = merged(read(folder), new)
    record = {"runs": [run.as_json() for run in runs]}
    (folder / JSON).write_text(
        json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    for old in folder.glob("peers-*.svg"):
        old.unlink()
    images = plots.draw(runs, folder)
    (folder / PAGE).write_text(page(runs, images), encoding="utf-8")
    return folder / PAGE


def read(folder: Path = FOLDER) -> list[Run]:
    """The record so far."""
    file = folder / JSON
    return (
        [from_json(run) for run in json.loads(file.read_text(encoding="utf-8"))["runs"]]
        if file.is_file()
        else []
    )


def page(runs: Sequence[Run], images: dict[tuple[str, str, str], list[str]]) -> str:
    """The whole page. Sections of scenarios that were never measured do not exist."""
    parts = [
        "# Benchmarks of the runtime",
        "Made by `make bench` from [engine.json](engine.json); not written by hand.",
    ]
    if any(verdicts(run) for run in runs):
        parts += ["## Targets", targets(runs)]
    for scenario, heading in HEADINGS.items():
        chosen = [run for run in runs if run.scenario == scenario]
        parts += [f"## {heading}"] * bool(chosen)
        for run in chosen:
            parts += section(run, images.get(run.key, []))
    parts += ["## How it was measured", METHOD]
    if started := commands(runs):
        parts += ["How the servers were started:", started]
    return "\n\n".join(parts) + "\n"


def targets(runs: Sequence[Run]) -> str:
    """Every measured target with its result."""
    rows = []
    for run in runs:
        for found in verdicts(run):
            met = "yes" if found.met else "**no**"
            rows.append((model_title(run), found.title, found.bound, f"{found.ratio:g}", met))
    return table(("model", "ratio", "target", "measured", "met"), rows)


def commands(runs: Sequence[Run]) -> str:
    """Every command line that was used, once."""
    used = {(key, command) for run in runs for key, command in run.commands.items()}
    return "\n".join(f"- {TITLES.get(key, key)}: `{command}`" for key, command in sorted(used))


def section(run: Run, images: Sequence[str]) -> list[str]:
    """One run: machine and date, table, missing servers, plots."""
    parts = [f"### {model_title(run)}", stamp(run)]
    if run.skipped:
        return [*parts, f"Not measured: {run.skipped}"]
    parts.append(figures(run))
    parts += [
        f"{TITLES.get(key, key)} is missing, or was only measured in part: {reason[-300:]}"
        for key, reason in run.absent.items()
    ]
    if run.memory_mib:
        peaks = ", ".join(
            f"{TITLES.get(key, key)} {mib:,} MiB" for key, mib in run.memory_mib.items()
        )
        parts.append(f"Peak memory: {peaks}.")
    if run.start_seconds:
        starts = ", ".join(
            f"{TITLES.get(key, key)} {seconds:.1f} s" for key, seconds in run.start_seconds.items()
        )
        parts.append(f"One start each, from the process to readiness: {starts}.")
    return parts + [
        f"![{image.removesuffix('.svg').replace('-', ' ')}]({image})" for image in images
    ]


def stamp(run: Run) -> str:
    """When, on what and with which versions."""
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return (
        f"{run.date}, commit {run.commit}, {run.rounds} rounds in {run.seconds / 60:.0f} min; "
        f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores, "
        f"load {machine.get('load_before', '?')} before; {versions}."
    )


def figures(run: Run) -> str:
    """Medians of every row, by number of clients; behind tokens/s the lowest and highest round."""
    metrics = [
        name
        for name in METRICS
        if any(name in each for rounds in run.rows.values() for each in rounds)
    ]
    rows = [
        [str(clients), who_title(run, who), *(cell(run, row, name) for name in metrics)]
        for clients, who, row in ordered(run)
    ]
    return table(("clients", "", *(METRICS[name] for name in metrics)), rows)


def ordered(run: Run) -> list[tuple[int, str, str]]:
    """Clients, who and key of every row, by number of clients."""
    split = [(int(row.rpartition("@")[2]), row.rpartition("@")[0], row) for row in run.rows]
    return sorted(split, key=lambda entry: entry[0])


def model_title(run: Run) -> str:
    """The model and its number format."""
    return f"{MODELS.get(run.model, run.model)}, {run.dtype}"


def who_title(run: Run, who: str) -> str:
    """A row's name for readers."""
    return (TITLES if run.scenario in ("peers", "llamacpp") else WAYS).get(who, who)


def cell(run: Run, row: str, metric: str) -> str:
    """The median, for tokens/s with the lowest and the highest round."""
    value = run.value(row, metric)
    if value is None:
        return "–"
    if metric != SPEED or run.rounds < 2:
        return number(value)
    each = [figures[metric] for figures in run.rows[row]]
    return f"{number(value)} ({number(min(each))} to {number(max(each))})"


def number(value: float) -> str:
    """A figure with three significant digits, the precision of such a measurement."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
