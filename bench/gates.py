"""What the gates' judge does with simulated traffic: `hack/bench gates [--rollouts 400] [--dry]`.

Pure computation: no cluster, no model. Every roll-out is judged at every look by the operator's own
code (`plans/evidence`), by the judge before it, and by a test of a fixed number of requests.
Written to docs/benchmarks.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import repeat
from math import inf, sqrt
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from bench.gates_batch import ErrorTrials, LatencyTrials
from bench.machine import commit, machine
from bench.report import FOLDER, table
from bench.stats import median
from llm_operator.plans.evidence import Buckets, Counts, ErrorTrial, LatencyTrial, MeanTrial, Rules
from llm_runtime.contract import FINE_BOUNDS_TOKENS

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator

ALLOWED_RATIO = 1.3
ALLOWED_RATE = 0.01
ALLOWED_TOKENS = 1.5
MOST_TOKENS = 4096
USUAL_RATE = 0.005
LEAST = 50
TAIL = 0.05
FINE = (*(0.005 * 1.05**step for step in range(193)), inf)
TOKENS = (*FINE_BOUNDS_TOKENS, inf)
COARSE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, inf)
"""What the runtime counted by before, and the judge before judged by."""
RULES = Rules(least=LEAST)
HOLD_SECONDS = 60
PERCENTILES = 101
LOOKS_TOGETHER = 60_000
"""How many looks of roll-outs are in memory at once."""
FIXED = 500
"""Requests of the candidate at which the fixed test is made, once."""
FIXED_Z = 2.326
"""One-sided, 1 %."""


@dataclass(frozen=True)
class Design:
    """How a roll-out is looked at.
    Rates are requests a second, each look at least `seconds` after the one before."""

    title: str
    seconds: float
    looks: int
    stable: float
    candidate: float
    later: float | None = None
    """The candidate's rate in the second half, taken from stable's."""

    def rates(self) -> tuple[Array, Array]:
        """Requests a second of both sides, by look."""
        own = np.full(self.looks, self.candidate)
        other = np.full(self.looks, self.stable)
        if self.later is not None:
            half = self.looks // 2
            own[half:] = self.later
            other[half:] = self.stable + self.candidate - self.later
        return own, other


DESIGNS = {
    "ten": Design("10 requests, 100 s, looks every 2 s", 2, 50, 0.9, 0.1),
    "short": Design("60 s, looks every 1 s, 5 + 5 requests/s", 1, 60, 5, 5),
    "canary": Design("120 s, looks every 2 s, 9 + 1 requests/s", 2, 60, 9, 1),
    "steps": Design("1,200 s, looks every 4 s, 9 + 1, then 5 + 5 requests/s", 4, 300, 9, 1, 5),
    "hold": Design("3,600 s, looks every 12 s, 9 + 1, then 5 + 5 requests/s", 12, 300, 9, 1, 5),
    "busy": Design("10 min, looks every 2 s, 90 + 17 requests/s: 10,000 requests", 2, 300, 90, 17),
    "day": Design("24 h, looks every 30 s, 0.2 + 0.05 requests/s", 30, 2880, 0.2, 0.05),
}


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    gate: str
    latency: str
    world: str
    design: str
    worse: float = 1.0
    """Times the latency, or times the allowed errors; 1: equal to stable."""


@dataclass
class Side:
    """One side's requests of a roll-out, in order."""

    look: Array
    """In which look each one falls."""
    seconds: Array
    """For the gate on them: tokens of the answer."""
    failed: Array


# Worlds: what both sides have in common, and what each has for itself.


def lognormal(random: Random, count: int) -> Array:
    """Body and tail of one kind."""
    return random.lognormal(-1, 0.5, count)


def bimodal(random: Random, count: int) -> Array:
    """A quarter takes ten times as long: cached or not."""
    slow = random.random(count) < 0.25
    return random.lognormal(-2.5, 0.25, count) * np.where(slow, 10, 1)


def heavy(random: Random, count: int) -> Array:
    """A Pareto tail without a variance."""
    return 0.1 * (1 + random.pareto(1.8, count))


def chained(random: Random, count: int, keep: float = 0.9) -> Array:
    """Each latency resembles the one before on its side:
    correlation 0.9 from one request to the next."""
    steps = random.normal(size=count) * sqrt(1 - keep * keep)
    if count:
        steps[0] = random.normal()
    found = []
    last = 0.0
    for step in steps.tolist():
        last = step + keep * last
        found.append(last)
    return np.exp(-1 + 0.5 * np.array(found))


LATENCIES: dict[str, Callable[[Random, int], Array]] = {
    "lognormal": lognormal, "bimodal": bimodal, "heavy tail": heavy, "autocorrelated": chained,
}  # fmt: skip


def drift(random: Random, looks: int) -> Array:
    """A factor by look that both sides share: a walk up to five times and back."""
    walk = np.cumsum(random.normal(size=looks)) / sqrt(looks)
    return np.exp(1.6 * walk)


def spells(random: Random, looks: int, seconds: float, length: float, part: float) -> Array:
    """Looks within spells of `length` seconds on average, a share `part` of all the time."""
    stay = np.exp(-seconds / length)
    inside = random.random() < part
    found = np.zeros(looks, bool)
    for index in range(looks):
        if random.random() > stay:
            inside = random.random() < part
        found[index] = inside
    return found


def requests(random: Random, design: Design, cell: Cell, slower: float, rate: float) -> list[Side]:
    """Both sides of one roll-out: the candidate's first."""
    looks = design.looks
    world = cell.world
    common = np.ones(looks)
    failures = np.zeros(looks)
    busy = np.ones(looks)
    if world == "drift":
        common = drift(random, looks)
    if world in ("bursts", "incidents"):
        there = spells(random, looks, design.seconds, 20, 0.1)
        busy = np.where(there, 5.0, 0.6) if world == "bursts" else busy
        common = np.where(there, 3.0, 1.0)
        failures = np.where(there, 0.2, 0.0) if world == "incidents" else failures
    sides = []
    for rates, factor, wrong in zip(design.rates(), (slower, 1.0), (rate, USUAL_RATE), strict=True):
        count = random.poisson(rates * busy * design.seconds)
        look = np.repeat(np.arange(looks), count)
        seconds = LATENCIES[cell.latency](random, len(look)) * factor * common[look]
        if world == "own spells":  # Of each side alone: a pod beside a noisy neighbour.
            seconds = (
                seconds * np.where(spells(random, looks, design.seconds, 10, 0.1), 1.5, 1.0)[look]
            )
        if cell.gate == "tokens":
            seconds = np.clip(np.ceil(100 * seconds), 1, MOST_TOKENS)
        failed = random.random(len(look)) < wrong + failures[look]
        if world == "clumps":  # Errors come five in a row, on one side alone.
            starts = np.flatnonzero(random.random(len(look)) < wrong / 5)
            failed = np.zeros(len(look), bool)
            failed[(starts[:, None] + np.arange(5)).ravel().clip(max=max(0, len(look) - 1))] = True
        sides.append(Side(look, seconds, failed))
    return sides


def counted(side: Side, looks: int, bounds: Sequence[float]) -> Array:
    """Samples up to each bound, by look."""
    bucket = np.searchsorted(np.array(bounds[:-1]), side.seconds)
    flat = np.bincount(side.look * len(bounds) + bucket, minlength=looks * len(bounds))
    return np.asarray(flat.reshape(looks, len(bounds)).cumsum(axis=1), np.int32)


def errors(side: Side, looks: int) -> tuple[Array, Array]:
    """Requests and failed ones, by look."""
    return np.bincount(side.look, minlength=looks), np.bincount(
        side.look[side.failed], minlength=looks
    )


# Judges: each says at which look it takes the candidate back, or that it lets it pass.

Ended = tuple[str, int]
"""Failed, Passed, or Inconclusive, and after how many of the candidate's requests."""


def ours(rollouts: list[list[Side]], design: Design, gate: str, stops: bool) -> list[Ended]:
    """Today's gates on many roll-outs.
    `stops`: a roll-out ends at the first look that passes, after 60 s."""
    if gate == "tokens":
        return [operators(sides, design, gate, stops) for sides in rollouts]
    rows = len(rollouts)
    looks = design.looks
    ended: list[Ended | None] = [None] * rows
    judge: Callable[[int], tuple[Array, Array]]
    if gate == "latency":
        by_latency = LatencyTrials(rows, ALLOWED_RATIO, RULES, FINE)
        own, other = (
            np.array([counted(sides[who], looks, FINE) for sides in rollouts]) for who in (0, 1)
        )
        count = own[:, :, -1].cumsum(axis=1)
        judge = lambda look: by_latency.look(own[:, look], other[:, look])  # noqa: E731
    else:
        by_errors = ErrorTrials(rows, ALLOWED_RATE, RULES)
        both = [np.array([errors(sides[who], looks) for sides in rollouts]) for who in (0, 1)]
        count = both[0][:, 0].cumsum(axis=1)
        judge = lambda look: by_errors.look(  # noqa: E731
            *(each[:, part, look] for each in both for part in (0, 1))
        )
    for look in range(looks):
        failed, passed = judge(look)
        for row in np.flatnonzero(
            failed | (passed & stops & ((look + 1) * design.seconds >= HOLD_SECONDS))
        ):
            ended[row] = ended[row] or (
                "Failed" if failed[row] else "Passed",
                int(count[row, look]),
            )
    return [each or ("Inconclusive", int(count[row, -1])) for row, each in enumerate(ended)]


def operators(sides: list[Side], design: Design, gate: str, stops: bool) -> Ended:
    """The same by the operator's own code."""
    # The two ratios that decide; the others are only for the interval.
    ratios = (ALLOWED_RATIO, ALLOWED_RATIO * 1.5)
    late = LatencyTrial(ALLOWED_RATIO, RULES, ratios=ratios)
    long = MeanTrial(ALLOWED_TOKENS, RULES)
    wrong = ErrorTrial(ALLOWED_RATE, RULES)
    bounds = TOKENS if gate == "tokens" else FINE
    counts = [counted(side, design.looks, bounds).astype(float).tolist() for side in sides]
    failed = [np.array(errors(side, design.looks), float).T.tolist() for side in sides]
    seen = 0
    for look in range(design.looks):
        seen += int(failed[0][look][0])
        if gate == "errors":
            wrong.look(*(Counts(*each[look]) for each in failed))
            state, _ = wrong.state()
        else:
            trial = late if gate == "latency" else long
            trial.look(*(Buckets(bounds, tuple(each[look])) for each in counts))
            state, _ = trial.state()
        if state == "Failed" or (
            stops and state == "Passed" and (look + 1) * design.seconds >= HOLD_SECONDS
        ):
            return state, seen
    return "Inconclusive", seen


def earlier(sides: list[Side], design: Design, gate: str) -> Ended:
    """The judge before: a point estimate against the threshold at every look,
    from coarse buckets."""
    if gate == "latency":
        own, other = (counted(side, design.looks, COARSE).cumsum(axis=0) for side in sides)
        known = (own[:, -1] >= LEAST) & (other[:, -1] >= LEAST)
        over = np.flatnonzero(known & (p95(own) > ALLOWED_RATIO * p95(other)))
        return ("Failed", int(own[over[0], -1])) if len(over) else ("Passed", int(own[-1, -1]))
    if gate == "tokens":
        (mine, tokens), (theirs, others) = (totals(side, design.looks) for side in sides)
        known = (mine >= LEAST) & (theirs >= LEAST)
        over = np.flatnonzero(known & (tokens * theirs > ALLOWED_TOKENS * others * mine))
        return ("Failed", int(mine[over[0]])) if len(over) else ("Passed", int(mine[-1]))
    count, bad = (each.cumsum() for each in errors(sides[0], design.looks))
    over = np.flatnonzero((count >= LEAST) & (bad > ALLOWED_RATE * count))
    return ("Failed", int(count[over[0]])) if len(over) else ("Passed", int(count[-1]))


def totals(side: Side, looks: int) -> tuple[Array, Array]:
    """Answers and their tokens up to each look."""
    tokens = np.bincount(side.look, weights=side.seconds, minlength=looks)
    return np.bincount(side.look, minlength=looks).cumsum(), tokens.cumsum()


def p95(upto: Array) -> Array:
    """By look, as Prometheus' histogram_quantile."""
    looks = np.arange(len(upto))
    rank = 0.95 * upto[:, -1]
    bounds = np.array([0, *COARSE[:-1]])
    index = np.minimum((upto < rank[:, None]).sum(axis=1), len(COARSE) - 2)
    beneath = np.where(index > 0, upto[looks, index - 1], 0)
    inside = np.maximum(upto[looks, index] - beneath, 1)
    part = np.minimum((rank - beneath) / inside, 1)
    return np.asarray(bounds[index] + (bounds[index + 1] - bounds[index]) * part)


def fixed(sides: list[Side], gate: str) -> Ended:
    """One test at the candidate's 500th request, one-sided at 1 %, of exact latencies;
    none before."""
    own = sides[0]
    if len(own.look) < FIXED:
        return "Inconclusive", len(own.look)
    other = sides[1].look <= own.look[FIXED - 1]
    mine = own.seconds[:FIXED]
    theirs = sides[1].seconds[other]
    if gate == "latency":
        if not len(theirs):
            return "Inconclusive", FIXED
        late = float(np.quantile(theirs, 1 - TAIL))
        share = float((mine > ALLOWED_RATIO * late).mean())
        usual = TAIL
        pairs = 1 / FIXED + 1 / len(theirs)
    elif gate == "tokens":
        if not len(theirs):
            return "Inconclusive", FIXED
        spread = sqrt(mine.var() / FIXED + ALLOWED_TOKENS**2 * theirs.var() / len(theirs))
        more = float(mine.mean() - ALLOWED_TOKENS * theirs.mean())
        return ("Failed" if more > FIXED_Z * spread else "Passed"), FIXED
    else:
        share = float(own.failed[:FIXED].mean())
        usual = ALLOWED_RATE
        pairs = 1 / FIXED
    return (
        "Failed" if share > usual + FIXED_Z * sqrt(usual * (1 - usual) * pairs) else "Passed"
    ), FIXED


def cells() -> list[Cell]:
    """All that is simulated."""
    worlds = ("drift", "bursts", "own spells")
    failing = ("steady", "clumps", "incidents")
    found = [Cell("latency", kind, "steady", "hold", 2) for kind in LATENCIES]
    found += [Cell("latency", "lognormal", world, "hold", 2) for world in worlds]
    found += [Cell("errors", "lognormal", world, "busy", 3) for world in failing]
    found += [
        Cell("errors", "lognormal", world, name)
        for world in failing
        for name in ("canary", "steps", "busy")
    ]
    found += [
        Cell("errors", "lognormal", "steady", "ten"),
        Cell("latency", "lognormal", "steady", "ten"),
    ]
    found += [
        Cell("latency", kind, "steady", name)
        for kind in LATENCIES
        for name in ("canary", "short", "steps")
    ]
    found += [Cell("latency", "lognormal", world, "steps") for world in worlds]
    found += [Cell("tokens", kind, "steady", "hold", 3) for kind in LATENCIES]
    found += [Cell("tokens", "lognormal", world, "hold", 3) for world in worlds]
    found += [
        Cell("tokens", kind, "steady", name)
        for kind in LATENCIES
        for name in ("canary", "short", "steps")
    ]
    found += [Cell("tokens", "lognormal", world, "steps") for world in worlds]
    found += [Cell("tokens", "lognormal", "steady", name) for name in ("ten", "busy")]
    found += [Cell("latency", kind, "drift", "steps") for kind in ("heavy tail", "bimodal")]
    found += [
        Cell("latency", "autocorrelated", "bursts", "busy"),
        Cell("errors", "lognormal", "steady", "day"),
    ]
    return [
        *found,
        Cell("latency", "lognormal", "drift", "day"),
        Cell("latency", "autocorrelated", "steady", "day"),
    ]


def spread(counts: list[int]) -> list[int]:
    """At most 101 of them: the percentiles."""
    if len(counts) <= PERCENTILES:
        return counts
    return [
        counts[round(step * (len(counts) - 1) / (PERCENTILES - 1))] for step in range(PERCENTILES)
    ]


def simulate(cell: Cell, rollouts: int) -> dict[str, Any]:
    """One row: shares of roll-outs that each judge takes back, and after how many requests."""
    design = DESIGNS[cell.design]
    stops = cell.worse != 1
    failing = 0.0 if cell.gate != "errors" else ALLOWED_RATE * cell.worse if stops else USUAL_RATE
    slower = 1.0 if cell.gate == "errors" else cell.worse
    ended: dict[str, list[Ended]] = {"ours": [], "earlier": [], "fixed": []}
    together = max(1, LOOKS_TOGETHER // design.looks)
    for begun in range(0, rollouts, together):
        some = [
            requests(
                np.random.default_rng([crc32(repr(cell).encode()), turn]),
                design,
                cell,
                slower,
                failing,
            )
            for turn in range(begun, min(begun + together, rollouts))
        ]
        ended["ours"] += ours(some, design, cell.gate, stops)
        ended["earlier"] += [earlier(sides, design, cell.gate) for sides in some]
        ended["fixed"] += [fixed(sides, cell.gate) for sides in some]
        if not begun and operators(some[0], design, cell.gate, stops) != ended["ours"][0]:
            raise RuntimeError(f"{cell}: the operator's code and gates_batch.py differ")
    row: dict[str, Any] = {**asdict(cell), "rollouts": rollouts}
    for name, each in ended.items():
        states = [state for state, _ in each]
        row[name] = {
            "taken_back": states.count("Failed") / rollouts,
            "passed": states.count("Passed") / rollouts,
            "requests": spread(sorted(count for state, count in each if state == "Failed")),
        }
    return row


METHOD = """\
Every roll-out is simulated request by request; the judges see it look by look. **Ours** is the operator's own rule
(`plans/evidence`), computed for many roll-outs at once; in every row one roll-out is judged by the operator's code
itself, and the benchmark fails if the two differ. **Before** is the judge of the version before it: a point estimate
from coarse buckets against the threshold at every look, from 50 requests on. **Fixed** is one test at the candidate's
500th request, one-sided at 1 %, of exact latencies.

The rows on tokens are judged by the operator's code alone. There was no such gate before: a plain comparison of the two
means at every look stands for it. The latencies below times 100 are the tokens of an answer, at most 4096.

The allowed ratio of 95th percentiles is 1.3, that of tokens an answer 1.5, the allowed error rate 1 %; stable and an
equal candidate have 0.5 %. Equal versions are judged to the end of the time, whatever was said before; worse ones until
they are taken back, or promoted at the first look after 60 s at which the gate passes. What is neither is held, and
taken back by default after `maxHoldSeconds`.

Latencies: lognormal (sigma 0.5); bimodal (a quarter takes ten times as long); heavy tail (Pareto, 1.8, no variance);
autocorrelated (0.9 from one request to the next, on each side). Worlds: *drift*, both sides get up to several times
slower and faster together; *bursts*, a tenth of the time five times the requests and three times the latency, on both
sides; *own spells*, each side by itself is 1.5 times as slow for a tenth of the time; *clumps*, errors come five in a
row, on each side by itself; *incidents*, a tenth of the time 20 % of all requests fail, on both sides."""


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(prog="hack/bench gates")
    parser.add_argument("--rollouts", type=int, default=400, help="of each row")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--only", default="", help="rows whose names have this in them; the others stay as recorded"
    )
    parser.add_argument(
        "--dry", action="store_true", help="print only; leave docs/benchmarks as it is"
    )
    options = parser.parse_args()
    chosen = [cell for cell in cells() if options.only in named(asdict(cell))]
    file = FOLDER / "gates.json"
    old = json.loads(file.read_text())["rows"] if file.is_file() and not options.dry else []
    rows = {named(row): row for row in old}
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(simulate, chosen, repeat(options.rollouts)):
            rows[named(row)] = {**row, "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit()}
            print(
                f"{named(row)}: {', '.join(f'{TITLES[who]} {caught(row[who])}' for who in TITLES)}",
                flush=True,
            )
            if not options.dry:
                write([rows[name] for cell in cells() if (name := named(asdict(cell))) in rows])


def write(rows: list[dict[str, Any]]) -> None:
    """The record, the page and its plot. After each row: what was simulated is kept."""
    record = {"machine": machine(), "targets": verdicts(rows), "rows": rows}
    (FOLDER / "gates.json").write_text(json.dumps(record, ensure_ascii=False) + "\n")
    (FOLDER / "gates.md").write_text(page(record))
    draw(rows, FOLDER / PLOT)


PLOT = "gates.svg"
MOST_EQUAL = 0.01
LEAST_WORSE = 0.95
TITLES = {"ours": "ours", "earlier": "before", "fixed": "fixed"}


def named(row: dict[str, Any]) -> str:
    """A row in words."""
    gate = row["gate"]
    kind = "" if gate == "errors" else f"{row['latency']}, "
    figure = "allowed errors" if gate == "errors" else gate
    worse = "equal" if row["worse"] == 1 else f"{row['worse']:g} × the {figure}"
    return f"{row['gate']}: {worse}; {kind}{row['world']}; {DESIGNS[row['design']].title}"


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets, over the worst row of each kind."""
    equal = max((row["ours"]["taken_back"] for row in rows if row["worse"] == 1), default=0.0)
    worse = min((row["ours"]["taken_back"] for row in rows if row["worse"] != 1), default=1.0)
    return [
        target("equal versions taken back, worst row", "at most 1 %", equal, equal <= MOST_EQUAL),
        target("worse versions caught, worst row", "at least 95 %", worse, worse >= LEAST_WORSE),
    ]


def target(title: str, bound: str, measured: float, met: bool) -> dict[str, Any]:
    """One line of the first table."""
    return {"title": title, "bound": bound, "measured": measured, "met": met}


def page(record: dict[str, Any]) -> str:
    """The page, from the record alone."""
    targets = [
        (t["title"], t["bound"], f"{t['measured']:.1%}", "yes" if t["met"] else "**no**")
        for t in record["targets"]
    ]
    parts = [
        "# Benchmark of the gates' judge",
        "Made by `hack/bench gates` from [gates.json](gates.json); not written by hand.",
        table(("target", "bound", "measured", "met"), targets),
    ]
    for title, equal in (
        ("Equal versions: taken back, of all roll-outs", True),
        ("Worse versions", False),
    ):
        lines = []
        for row in record["rows"]:
            if (row["worse"] == 1) != equal:
                continue
            name = named(row)
            judges = [row[judge] for judge in TITLES]
            if equal:
                lines.append((name, *(f"{each['taken_back']:.1%}" for each in judges)))
            else:
                ours = row["ours"]
                held = 1 - ours["taken_back"] - ours["passed"]
                lines.append(
                    (name, *map(caught, judges), f"{ours['passed']:.1%}", f"{max(held, 0):.1%}")
                )
        heads = ("", *TITLES.values(), *(() if equal else ("ours: promoted", "ours: held")))
        parts += [f"## {title}", table(heads, lines)]
        if not equal:
            parts.append("Taken back, after the median number of the candidate's requests.")
    made = sorted(
        {
            f"{row['date']}, commit {row['commit']}, {row['rollouts']} roll-outs a row"
            for row in record["rows"]
        }
    )
    stamp = f"{'; '.join(made)}."
    parts += [
        f"![share of roll-outs taken back over requests]({PLOT})",
        stamp,
        "## How it was simulated",
        METHOD,
    ]
    return "\n\n".join(parts) + "\n"


def caught(found: dict[str, Any]) -> str:
    """One judge's share and requests."""
    after = f", {median(found['requests']):.0f}" if found["requests"] else ""
    return f"{found['taken_back']:.1%}{after}"


def by(found: dict[str, Any], at: Array) -> Array:
    """Share of one row's roll-outs that one judge has taken back by these numbers of requests."""
    counts = np.array(found["requests"])
    return np.asarray(
        found["taken_back"] * np.searchsorted(counts, at, side="right") / max(1, len(counts))
    )


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Taken back by now, over the candidate's requests: equal and worse versions, by each judge."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "llm-operator", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharey=True)
    colours = {"ours": "#1f6feb", "earlier": "#b0872c", "fixed": "#7a7a7a"}
    for area, gate in zip(axes, ("latency", "errors"), strict=True):
        for equal, style in ((True, ":"), (False, "-")):
            chosen = [
                row
                for row in rows
                if row["gate"] == gate and (row["worse"] == 1) == equal and row["design"] != "ten"
            ]
            for judge, colour in colours.items():
                at = np.geomspace(10, 10_000, 200)
                parts = [by(row[judge], at) for row in chosen] or [np.zeros_like(at)]
                label = f"{TITLES[judge]}, {'equal' if equal else 'worse'}"
                area.plot(at, np.mean(parts, axis=0), style, color=colour, label=label)
        area.set_title(f"{gate}: taken back by now", fontsize=9)
        area.set_xscale("log")
        area.set_xlabel("requests of the candidate")
        area.grid(alpha=0.25)
        area.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
