"""Who is measured in turn, and on what.
Each scenario fills one `Run`; ways take turns inside each round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import adapters as lora
from bench import models
from bench.arena import Arena, Say
from bench.inprocess import Engine, Generate
from bench.load import Load
from bench.results import SPEED, Run
from bench.servers import KINDS, LlamaCpp, Ours, OursNarrow, Server
from bench.stats import percentile
from bench.workload import Ask, mixed, shared_prefixes, spread_over

REQUESTS = {1: 3, 8: 16, 32: 48, 128: 128}
"""Requests of one measurement, by number of clients. A complete run of `peers` with three rounds
stays below 25 minutes on two cores with these."""

SINGLE_REQUESTS = 6
BATCH = 32
SLOT_TOKENS = 1024
PREFIX_TOKENS = 1000
PREFIX_GROUPS = 3
PREFIX_FOLLOWERS = 4


@dataclass(frozen=True)
class Options:
    """The options of one run, from the command line."""

    model: str
    dtype: str
    rounds: int
    servers: tuple[str, ...]
    clients: tuple[int, ...]
    say: Say

    @property
    def folder(self) -> Path:
        return models.folder(self.model)

    def asks(self, clients: int, turn: int, requests: int = 0) -> list[Ask]:
        """The requests of one round: the same for all,
        and new in each round, so that no cache knows them."""
        requests = requests or REQUESTS.get(clients, 2 * clients)
        return mixed(models.words(self.folder), requests, seed=1000 * turn + clients)


def peers(options: Options, run: Run) -> None:
    """All servers over HTTP, at each number of clients.
    A peer that fails is dropped; ours must not fail."""
    servers = [KINDS[key](options.folder, options.dtype) for key in options.servers]
    _compare(options, run, servers, options.clients)


def _compare(options: Options, run: Run, servers: Sequence[Server], numbers: Sequence[int]) -> None:
    with Arena(servers, options.say) as arena:
        run.absent = arena.absent
        run.commands = arena.commands
        run.start_seconds = arena.start_seconds
        for turn in range(options.rounds):
            for clients in numbers:
                asks = options.asks(clients, turn)
                for key in rotated(arena.present, turn):
                    try:
                        _note(options, run, turn, key, clients, arena.measure(key, clients, asks))
                    except RuntimeError as error:
                        if key == Ours.key:
                            raise
                        arena.drop(key, str(error))
        run.memory_mib = dict(arena.memory_mib())


def llamacpp(options: Options, run: Run) -> None:
    """Ours beside llama.cpp with equal room, by weights of the same size."""
    servers: list[Server] = [
        kind(options.folder, options.dtype, sequences=BATCH, length=SLOT_TOKENS)
        for kind in (Ours, OursNarrow, LlamaCpp)
    ]
    _compare(options, run, servers, tuple(c for c in options.clients if c <= BATCH))


def rotated(keys: list[str], turn: int) -> list[str]:
    """Another one first in each round."""
    start = turn % len(keys)
    return keys[start:] + keys[:start]


def single(options: Options, run: Run) -> None:
    """One client of ours over HTTP, and `generate` on the same prompts."""
    plain = Generate(options.folder, options.dtype)
    with Arena([Ours(options.folder, options.dtype)], options.say) as arena:
        _must_run(arena, run)
        plain.one_by_one(options.asks(1, options.rounds, 1))
        for turn in range(options.rounds):
            asks = options.asks(1, turn, SINGLE_REQUESTS)
            _note(options, run, turn, "ours", 1, arena.measure("ours", 1, asks))
            _note_speed(options, run, turn, "generate", 1, plain.one_by_one(asks))


def inprocess(options: Options, run: Run) -> None:
    """The engine stepped by hand, the same over HTTP, and one static batch of `generate`."""
    plain = Generate(options.folder, options.dtype)
    engine = Engine(options.folder, options.dtype)
    with Arena([Ours(options.folder, options.dtype)], options.say) as arena:
        _must_run(arena, run)
        engine.tokens_per_second(options.asks(BATCH, options.rounds), BATCH)
        for turn in range(options.rounds):
            asks = options.asks(BATCH, turn)
            _note_speed(options, run, turn, "engine", BATCH, engine.tokens_per_second(asks, BATCH))
            _note(options, run, turn, "ours", BATCH, arena.measure("ours", BATCH, asks))
            _note_speed(options, run, turn, "static", BATCH, plain.static_batch(asks[:BATCH]))


def adapters(options: Options, run: Run) -> None:
    """Ours with eight LoRA adapters loaded:
    requests to the base only, and to all adapters in turn."""
    server = Ours(options.folder, options.dtype, adapters=lora.folders(options.folder))
    names = [f"{server.name}:{adapter}" for adapter in server.adapters]
    with Arena([server], options.say) as arena:
        if arena.absent:
            run.skipped = (
                "the runtime did not start with adapters in its configuration:"
                f" {arena.absent['ours'][-300:]}"
            )
            return
        for turn in range(options.rounds):
            asks = options.asks(BATCH, turn)
            _note(options, run, turn, "base", BATCH, arena.measure("ours", BATCH, asks))
            _note(
                options,
                run,
                turn,
                "mixed",
                BATCH,
                arena.measure("ours", BATCH, spread_over(asks, names)),
            )


def prefix(options: Options, run: Run) -> None:
    """Time to first token of requests that share 1,000 tokens:
    of the first with a prefix, and of those after it."""
    words = models.words(options.folder)
    with Arena([Ours(options.folder, options.dtype)], options.say) as arena:
        _must_run(arena, run)
        for turn in range(options.rounds):
            groups = shared_prefixes(
                words, PREFIX_GROUPS, PREFIX_FOLLOWERS, PREFIX_TOKENS, seed=turn
            )
            answers = arena.measure("ours", 1, [ask for group in groups for ask in group]).answers
            size = 1 + PREFIX_FOLLOWERS
            for who, chosen in (
                ("new", answers[::size]),
                ("known", [a for i, a in enumerate(answers) if i % size]),
            ):
                run.add(
                    who,
                    1,
                    {"ttft_p50_ms": percentile([1000 * answer.ttft for answer in chosen], 50)},
                )
                options.say(
                    f"round {turn + 1}: {who:8} prefix, first token"
                    f" {run.rows[f'{who}@1'][-1]['ttft_p50_ms']:.0f} ms"
                )


SCENARIOS: dict[str, Callable[[Options, Run], None]] = {
    "peers": peers,
    "llamacpp": llamacpp,
    "single": single,
    "inprocess": inprocess,
    "adapters": adapters,
    "prefix": prefix,
}


def _note(options: Options, run: Run, turn: int, who: str, clients: int, load: Load) -> None:
    figures = load.figures()
    run.add(who, clients, figures)
    options.say(
        f"round {turn + 1}: {who:12} {clients:4} clients {figures[SPEED]:7.1f} tokens/s   first"
        f" token {figures['ttft_p50_ms']:6.0f} ms   between {figures['itl_p50_ms']:5.1f}, p99"
        f" {figures['itl_p99_ms']:6.1f} ms"
    )


def _note_speed(
    options: Options, run: Run, turn: int, who: str, clients: int, tokens_per_second: float
) -> None:
    run.add(who, clients, {SPEED: tokens_per_second})
    options.say(f"round {turn + 1}: {who:12} {clients:4} at once {tokens_per_second:7.1f} tokens/s")


def _must_run(arena: Arena, run: Run) -> None:
    run.commands = arena.commands
    if arena.absent:
        raise RuntimeError(f"the runtime did not start: {arena.absent['ours']}")
