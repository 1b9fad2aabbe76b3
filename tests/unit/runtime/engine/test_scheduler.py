"""The policy, as tables: who advances by how much."""

import pytest

from llm_runtime.engine.scheduler import Batch, Delivery, Move, Scheduler
from llm_runtime.engine.sequence import Sampled
from llm_runtime.errors import QueueFull
from llm_runtime.request import FinishReason
from unit.runtime.engine.fakes import EOS, sequence


def scheduler(slots: int = 4, tokens: int = 32, queue: int = 8, beside: int | None = None) -> Scheduler:
    return Scheduler(slots, tokens, queue, beside)


def shape(batch: Batch | None) -> list[tuple[str, int, int, int, bool]]:
    assert batch is not None
    return [(span.sequence.request.id, span.slot, span.start, span.count, span.samples) for span in batch.spans]


def step(of: Scheduler, token: int = ord("x")) -> tuple[Batch, list[Delivery]]:
    batch = of.next_batch()
    assert batch is not None
    return batch, of.advance(batch, [Sampled(token) for span in batch.spans if span.samples])


def test_idle_without_requests() -> None:
    assert scheduler().next_batch() is None
    assert scheduler().idle


def test_a_prompt_is_one_span_and_then_one_token_a_step() -> None:
    one = scheduler()
    one.add(sequence("abcde", name="a"))
    assert shape(step(one)[0]) == [("a", 0, 0, 5, True)]
    assert shape(step(one)[0]) == [("a", 0, 5, 1, True)]


def test_a_long_prompt_comes_in_chunks_of_the_budget_and_samples_after_the_last() -> None:
    one = scheduler(tokens=16)
    one.add(sequence("p" * 40, name="a"))
    assert [shape(step(one)[0])[0][2:] for _ in range(4)] == [
        (0, 16, False),
        (16, 16, False),
        (32, 8, True),
        (40, 1, True),
    ]


def test_decoding_goes_first_and_prompts_fill_the_budget_in_order_of_arrival() -> None:
    one = scheduler(tokens=32)
    one.add(sequence("abc", name="a"))
    step(one)
    one.add(sequence("p" * 20, name="b"))
    one.add(sequence("q" * 20, name="c"))
    assert shape(step(one)[0]) == [("a", 0, 3, 1, True), ("b", 1, 0, 20, True), ("c", 2, 0, 11, False)]
    assert shape(step(one)[0]) == [("a", 0, 4, 1, True), ("b", 1, 20, 1, True), ("c", 2, 11, 9, True)]


def test_prompts_beside_running_streams_are_bounded_and_alone_are_not() -> None:
    one = scheduler(tokens=64, beside=16)
    one.add(sequence("p" * 40, name="a"))
    assert shape(step(one)[0]) == [("a", 0, 0, 40, True)]
    one.add(sequence("q" * 40, name="b"))
    assert shape(step(one)[0])[1] == ("b", 1, 0, 16, False)


def test_prompts_advance_even_when_decoding_takes_the_whole_budget() -> None:
    one = scheduler(slots=20, tokens=16)
    for index in range(16):
        one.add(sequence("a", name=str(index), max_tokens=99))
    step(one)
    one.add(sequence("p" * 20, name="late"))
    assert ("late", 16, 0, 16, False) in shape(step(one)[0])


def test_no_more_run_than_there_are_slots_and_the_queue_is_first_in_first_out() -> None:
    one = scheduler(slots=2)
    for name in "abc":
        one.add(sequence("p", name=name, max_tokens=1))
    assert [span[0] for span in shape(step(one)[0])] == ["a", "b"]
    assert [span[0] for span in shape(step(one)[0])] == ["c"]
    assert one.idle


def test_a_full_queue_refuses_and_free_slots_count_as_room() -> None:
    one = scheduler(slots=2, queue=1)
    for name in "abc":
        one.add(sequence(name=name))
    with pytest.raises(QueueFull, match="3 requests"):
        one.add(sequence(name="d"))
    step(one)
    with pytest.raises(QueueFull):
        one.add(sequence(name="d"))


def test_who_leaves_is_replaced_by_the_last_and_its_cache_moves() -> None:
    one = scheduler()
    for name in "abc":
        one.add(sequence("pp", name=name, max_tokens=1 if name == "a" else 9))
    step(one)
    batch, _ = step(one)
    assert batch.moves == (Move(source=2, target=0, length=2),)
    assert shape(batch) == [("c", 0, 2, 1, True), ("b", 1, 2, 1, True)]


def test_several_who_leave_at_once_leave_compact_slots() -> None:
    one = scheduler(slots=8, tokens=64)
    for name in "abcdef":
        one.add(sequence("pp", name=name, max_tokens=1 if name in "ace" else 9))
    step(one)
    batch, _ = step(one)
    assert sorted(span[1] for span in shape(batch)) == [0, 1, 2]
    placed = {"b": 1, "d": 3, "f": 5}
    for move in batch.moves:
        name = next(name for name, slot in placed.items() if slot == move.source)
        placed[name] = move.target
    assert {span[0]: span[1] for span in shape(batch)} == placed


def test_a_moved_half_done_prompt_keeps_its_turn_before_later_ones() -> None:
    one = scheduler(tokens=16)
    one.add(sequence("aa", name="a", max_tokens=2))
    one.add(sequence("b" * 40, name="b"))
    step(one)
    one.add(sequence("c" * 40, name="c"))
    step(one)
    batch, _ = step(one)
    assert [span[0] for span in shape(batch)] == ["b", "c"]


def test_cancelled_sequences_free_slot_and_queue_at_the_next_step() -> None:
    one = scheduler(slots=1)
    running, waiting, other = (sequence(name=name) for name in ("run", "wait", "other"))
    for each in (running, waiting, other):
        one.add(each)
    step(one)
    running.cancelled = waiting.cancelled = True
    gone = one.drop_cancelled()
    assert {(d.sequence.request.id, d.event.finish_reason) for d in gone} == {
        ("run", FinishReason.CANCELLED),
        ("wait", FinishReason.CANCELLED),
    }
    assert [span[0] for span in shape(step(one)[0])] == ["other"]


def test_a_failed_step_ends_the_running_and_spares_the_queue() -> None:
    one = scheduler(slots=1)
    one.add(sequence(name="a"))
    one.add(sequence(name="b"))
    one.next_batch()
    failed = one.fail(list(one.running), "boom")
    assert [(d.sequence.request.id, d.event.error) for d in failed] == [("a", "boom")]
    batch, _ = step(one)
    assert (shape(batch)[0][0], batch.moves) == ("b", ())


def test_every_sequence_gets_exactly_one_final_event_whatever_happens() -> None:
    one = scheduler(slots=3, tokens=16, queue=64)
    everyone = [sequence("p" * (1 + 7 * i % 30), name=str(i), max_tokens=1 + i % 5) for i in range(30)]
    for each in everyone:
        one.add(each)
    finals: list[str] = []
    for number in range(1000):
        everyone[number % 30].cancelled |= number % 11 == 0
        dropped = one.drop_cancelled()
        batch = one.next_batch()
        done = (
            dropped
            if batch is None
            else dropped
            + one.advance(batch, [Sampled(EOS if number % 7 == 0 else 120) for span in batch.spans if span.samples])
        )
        finals += [d.sequence.request.id for d in done if d.event.finish_reason]
        if one.idle:
            break
    assert sorted(finals) == sorted(str(i) for i in range(30))
