"""The policy, as tables: who advances by how much."""

import pytest

from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.engine.scheduler import Batch, Delivery, Scheduler
from llm_runtime.engine.sequence import Sampled
from llm_runtime.errors import QueueFull
from llm_runtime.request import FinishReason
from unit.runtime.engine.fakes import EOS, scheduler, sequence


def shape(batch: Batch | None) -> list[tuple[str, int, int, bool]]:
    assert batch is not None
    return [
        (span.sequence.request.id, span.start, span.count, span.samples) for span in batch.spans
    ]


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
    assert shape(step(one)[0]) == [("a", 0, 5, True)]
    assert shape(step(one)[0]) == [("a", 5, 1, True)]


def test_a_long_prompt_comes_in_chunks_of_the_budget_and_samples_after_the_last() -> None:
    one = scheduler(tokens=16)
    one.add(sequence("p" * 40, name="a"))
    assert [shape(step(one)[0])[0][1:] for _ in range(4)] == [
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
    assert shape(step(one)[0]) == [("a", 3, 1, True), ("b", 0, 20, True), ("c", 0, 11, False)]
    assert shape(step(one)[0]) == [("a", 4, 1, True), ("b", 20, 1, True), ("c", 11, 9, True)]


def test_prompts_beside_running_streams_are_bounded_and_alone_are_not() -> None:
    one = scheduler(tokens=64, beside=16)
    one.add(sequence("p" * 40, name="a"))
    assert shape(step(one)[0]) == [("a", 0, 40, True)]
    one.add(sequence("q" * 40, name="b"))
    assert shape(step(one)[0])[1] == ("b", 0, 16, False)


def test_prompts_advance_even_when_decoding_takes_the_whole_budget() -> None:
    one = scheduler(places=20, tokens=16)
    for index in range(16):
        one.add(sequence("a", name=str(index), max_tokens=99))
    step(one)
    one.add(sequence("p" * 20, name="late"))
    assert ("late", 0, 16, False) in shape(step(one)[0])


def test_no_more_run_than_there_are_slots_and_the_queue_is_first_in_first_out() -> None:
    one = scheduler(places=2)
    for name in "abc":
        one.add(sequence("p", name=name, max_tokens=1))
    assert [span[0] for span in shape(step(one)[0])] == ["a", "b"]
    assert [span[0] for span in shape(step(one)[0])] == ["c"]
    assert one.idle


def test_a_full_queue_refuses_and_free_slots_count_as_room() -> None:
    one = scheduler(places=2, queue=1)
    for name in "abc":
        one.add(sequence(name=name))
    with pytest.raises(QueueFull, match="3 requests"):
        one.add(sequence(name="d"))
    step(one)
    with pytest.raises(QueueFull):
        one.add(sequence(name="d"))


def test_a_half_done_prompt_keeps_its_turn_before_later_ones() -> None:
    one = scheduler(tokens=16)
    one.add(sequence("aa", name="a", max_tokens=2))
    one.add(sequence("b" * 40, name="b"))
    step(one)
    one.add(sequence("c" * 40, name="c"))
    step(one)
    batch, _ = step(one)
    assert [span[0] for span in shape(batch)] == ["b", "c"]


def test_cancelled_sequences_free_slot_and_queue_at_the_next_step() -> None:
    one = scheduler(places=1)
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
    one = scheduler(places=1)
    one.add(sequence(name="a"))
    one.add(sequence(name="b"))
    one.next_batch()
    failed = one.fail(one.running, "boom")
    assert [(d.sequence.request.id, d.event.error) for d in failed] == [("a", "boom")]
    batch, _ = step(one)
    assert [span[0] for span in shape(batch)] == ["b"]


def test_every_sequence_gets_exactly_one_final_event_whatever_happens() -> None:
    one = scheduler(places=3, tokens=16, queue=64)
    everyone = [
        sequence("p" * (1 + 7 * i % 30), name=str(i), max_tokens=1 + i % 5) for i in range(30)
    ]
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
            + one.advance(
                batch,
                [Sampled(EOS if number % 7 == 0 else 120) for span in batch.spans if span.samples],
            )
        )
        finals += [d.sequence.request.id for d in done if d.event.finish_reason]
        if one.idle:
            break
    assert sorted(finals) == sorted(str(i) for i in range(30))


def test_chunks_end_with_blocks() -> None:
    one = scheduler(tokens=BLOCK_TOKENS + 9)
    one.add(sequence("p" * 3 * BLOCK_TOKENS, name="a"))
    assert [shape(step(one)[0])[0][1:3] for _ in range(3)] == [
        (0, BLOCK_TOKENS), (BLOCK_TOKENS, BLOCK_TOKENS), (2 * BLOCK_TOKENS, BLOCK_TOKENS),
    ]  # fmt: skip


def test_nobody_starts_without_room_for_prompt_and_longest_answer() -> None:
    one = scheduler(blocks=3)
    one.add(sequence("p" * BLOCK_TOKENS, name="a", max_tokens=BLOCK_TOKENS))
    one.add(sequence("q" * BLOCK_TOKENS, name="b", max_tokens=BLOCK_TOKENS))
    assert [span[0] for span in shape(step(one)[0])] == ["a"]
    assert one.usage_ratio == pytest.approx(2 / 3)
    one.running[0].cancelled = True
    one.drop_cancelled()
    assert [span[0] for span in shape(step(one)[0])] == ["b"]


def test_a_known_beginning_is_not_computed_again_and_counted() -> None:
    one = scheduler()
    one.add(sequence("p" * 40, name="a", max_tokens=1))
    step(one)
    one.add(sequence("p" * 40 + "q", name="b", max_tokens=2))
    batch, deliveries = step(one)
    assert shape(batch) == [("b", 32, 9, True)]
    assert deliveries[0].event.cached_tokens == 32
    assert (one.prompt_tokens, one.cached_prompt_tokens) == (81, 32)


def test_of_many_with_one_beginning_who_come_at_once_one_computes_it() -> None:
    one = scheduler(tokens=BLOCK_TOKENS, places=8)
    for name in "abcd":
        one.add(sequence("p" * 4 * BLOCK_TOKENS + name, name=name, max_tokens=1))
    computed = 0
    while batch := one.next_batch():
        computed += batch.tokens
        one.advance(batch, [Sampled(EOS) for span in batch.spans if span.samples])
    assert computed == 4 * BLOCK_TOKENS + 4


def test_an_answer_is_known_to_the_next_turn_of_the_conversation() -> None:
    one = scheduler()
    first = sequence("p" * 30, name="a", max_tokens=10)
    one.add(first)
    while not one.idle:
        step(one)
    one.add(sequence("p" * 30 + "x" * 10 + "next", name="b"))
    assert shape(step(one)[0]) == [("b", 32, 12, True)]


def test_versions_of_adapters_share_no_beginning() -> None:
    one = scheduler()
    for number, (adapter, start) in enumerate(
        [("", 0), ("legal@1", 0), ("legal@1", 32), ("legal@2", 0), ("", 32)]
    ):
        newcomer = sequence("p" * 40, name=str(number), max_tokens=1)
        newcomer.adapter = adapter
        one.add(newcomer)
        assert shape(step(one)[0]) == [(str(number), start, 40 - start, True)]


def test_the_more_important_prompt_is_read_first() -> None:
    one = scheduler(tokens=16)
    one.add(sequence("p" * 40, name="low"))
    one.add(sequence("q" * 40, name="high", priority=1))
    assert [span[0] for span in shape(step(one)[0])] == ["high"]


def test_everything_is_given_back_in_the_end() -> None:
    pool = BlockPool(20)
    one = Scheduler(pool, 4, 64, 100)
    for number in range(30):
        one.add(sequence("p" * (1 + 5 * number), name=str(number), max_tokens=3))
    while not one.idle:
        step(one)
    assert pool.available == pool.size
