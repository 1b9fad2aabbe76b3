"""Steps that fail: the culprit is found, the others get exactly what they would have got,
memory is asked for less."""

from collections.abc import Callable

import pytest

from llm_runtime.engine.recovery import CALM_STEPS, BatchResult, CarefulRunner
from llm_runtime.engine.scheduler import Batch, Span
from llm_runtime.machine.memory import StepOutOfMemory
from unit.runtime.engine.fakes import ScriptedRunner, sequence


def batch(*counts: int) -> Batch:
    """One span for each count; those of several tokens are prompts."""
    spans = tuple(
        Span(sequence("p" * 40, name=str(number)), 0, count, samples=True)
        for number, count in enumerate(counts)
    )
    return Batch(spans)


def without(*names: str) -> Callable[[Batch], None]:
    def fail(of: Batch) -> None:
        if found := [span for span in of.spans if span.sequence.request.id in names]:
            raise RuntimeError(f"can't compute {found}")

    return fail


def memory_for(tokens: int) -> Callable[[Batch], None]:
    def fail(of: Batch) -> None:
        if of.tokens > tokens:
            raise StepOutOfMemory("full")

    return fail


def names(outcome: BatchResult) -> tuple[list[str], list[str]]:
    computed = [span.sequence.request.id for span in outcome.batch.spans]
    return computed, [sequence.request.id for sequence, _ in outcome.failed]


def test_a_whole_batch_is_one_forward() -> None:
    runner = ScriptedRunner()
    outcome = CarefulRunner(runner).run(batch(1, 1, 5))
    assert names(outcome) == (["0", "1", "2"], [])
    assert len(runner.batches) == 1


@pytest.mark.parametrize("culprits", [("0",), ("3",), ("6",), ("1", "5"), ("0", "1", "2")])
def test_only_the_culprits_fail(culprits: tuple[str, ...]) -> None:
    runner = ScriptedRunner({str(slot): chr(97 + slot) for slot in range(7)}, without(*culprits))
    outcome = CarefulRunner(runner).run(batch(*[1] * 7))
    spared = [str(slot) for slot in range(7) if str(slot) not in culprits]
    assert names(outcome) == (spared, list(culprits))
    assert [chr(sampled.token_id or 0) for sampled in outcome.sampled] == [
        chr(97 + int(name)) for name in spared
    ]
    assert {fault.name for _, fault in outcome.failed} == {"RuntimeError"}


def test_a_device_that_is_broken_fails_everybody() -> None:
    outcome = CarefulRunner(ScriptedRunner(fail=without("0", "1", "2"))).run(batch(1, 1, 1))
    assert names(outcome) == ([], ["0", "1", "2"])


def test_a_batch_that_does_not_fit_into_memory_runs_in_parts() -> None:
    runner = ScriptedRunner(fail=memory_for(3))
    outcome = CarefulRunner(runner).run(batch(*[1] * 8))
    assert names(outcome) == ([str(slot) for slot in range(8)], [])
    assert len(outcome.sampled) == 8


def test_a_chunk_that_does_not_fit_is_split_and_samples_once() -> None:
    runner = ScriptedRunner(fail=memory_for(8))
    outcome = CarefulRunner(runner).run(batch(30))
    [span] = outcome.batch.spans
    assert (span.start, span.count, len(outcome.sampled)) == (0, 30, 1)
    done = [
        (part.spans[0].start, part.spans[0].count) for part in runner.batches if part.tokens <= 8
    ]
    assert done == [(0, 7), (7, 8), (15, 7), (22, 8)]


def test_a_single_token_without_memory_fails_alone() -> None:
    outcome = CarefulRunner(ScriptedRunner(fail=memory_for(0))).run(batch(1))
    assert names(outcome) == ([], ["0"])
    assert outcome.failed[0][1].name == "StepOutOfMemory"


def test_pythons_own_memory_error_counts_too() -> None:
    def fail(of: Batch) -> None:
        if of.tokens > 2:
            raise MemoryError

    assert names(CarefulRunner(ScriptedRunner(fail=fail)).run(batch(1, 1, 1)))[0] == ["0", "1", "2"]


def test_after_memory_ran_out_steps_stay_small_for_a_while_and_grow_again() -> None:
    runner = ScriptedRunner(fail=memory_for(4))
    careful = CarefulRunner(runner)
    careful.run(batch(*[1] * 8))
    assert careful.token_limit == 4
    runner.batches.clear()
    careful.run(batch(*[1] * 8))
    assert [part.tokens for part in runner.batches] == [4, 4]  # Nothing failed this time.
    runner.fail = None
    for _ in range(CALM_STEPS):
        careful.run(batch(*[1] * 8))
    assert careful.token_limit is None
