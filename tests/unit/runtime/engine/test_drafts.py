"""Guessed tokens: what is guessed, when it pays, and that it changes no answer."""

import pytest

from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.engine.drafts import MOST_TOKENS, Drafter, StepCost, confirmed
from llm_runtime.engine.recovery import CarefulRunner
from llm_runtime.engine.scheduler import Batch, Scheduler
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.request import Constraint, FinishReason
from unit.runtime.engine.fakes import EOS, CharacterVocabulary, sequence


def guessed(prompt: str, room: int = 99, drafter: Drafter | None = None, **fields: object) -> str:
    """What is guessed to follow `prompt`, where rows cost next to nothing."""
    one = sequence(prompt, **{"max_tokens": 50, **fields})  # type: ignore[arg-type]
    (drafter := drafter or cheap()).guess((), 0)
    return "".join(map(chr, drafter.guess([one], room).get(one, ())))


def cheap() -> Drafter:
    drafter = Drafter()
    for rows in (1, 8, 1, 8):
        drafter.observe(rows, 1.0 + rows / 1000)
    return drafter


def test_what_followed_the_same_words_before_is_guessed() -> None:
    assert guessed("the cat sat. the ca") == "t sat"
    assert guessed("no words twice") == ""


def test_the_latest_place_counts_and_the_longest_end() -> None:
    assert guessed("ab1 ab2 ab").startswith("2 ab")
    # "xab" stood before, with 1 behind it; only "ab" stood before 2.
    assert guessed("wxab1 ab2 wxab").startswith("1")


def test_an_end_is_found_by_whole_tokens_only() -> None:
    """The bytes of a and b also stand one byte later, across three tokens."""
    assert guessed("\u6100\u6200\u6300xab") == ""
    assert guessed("\u6100\u6200\u6300xabcab") == "cab"


@pytest.mark.parametrize(("most", "room", "expected"), [(50, 3, 3), (4, 99, 3), (1, 99, 0)])
def test_a_guess_ends_with_the_room_and_before_the_last_token_of_the_answer(
    most: int, room: int, expected: int
) -> None:
    assert len(guessed("abcdefghij-abc", room, max_tokens=most)) == expected


def test_nothing_is_guessed_where_each_token_changes_what_the_next_may_be() -> None:
    text = "abcdef abc"
    assert guessed(text)
    assert not guessed(text, presence_penalty=0.5)
    constrained = sequence(text, max_tokens=50)
    constrained.matcher = CharacterVocabulary().matcher(Constraint("json_object"))
    assert not cheap().guess([constrained], 99)


def test_a_row_that_costs_as_much_as_a_step_is_not_worth_a_guess() -> None:
    drafter = Drafter()
    for rows in (1, 4, 2, 8):
        drafter.observe(rows, rows * 1.0)
    assert not guessed("abcdef abc", drafter=drafter)


@pytest.mark.parametrize(
    ("start", "slope", "sequences", "expected"),
    [(1.0, 0.1, 1, 0.1 / 1.1), (1.0, 0.1, 10, 0.5), (0.0, 1.0, 4, 1.0), (1.0, 0.0, 1, 0.02)],
)
def test_the_price_is_what_a_row_costs_over_what_a_token_costs(
    start: float, slope: float, sequences: int, expected: float
) -> None:
    cost = StepCost()
    for rows in (1, 3, 12, 2, 7):
        cost.observe(rows, start + slope * rows)
    assert cost.price(sequences) == pytest.approx(expected)


def test_steps_that_were_all_alike_do_not_tell_what_a_row_costs() -> None:
    cost = StepCost()
    for _ in range(50):
        cost.observe(1, 1.0)
    assert 0 < cost.price(1) < 0.2


def test_right_guesses_grow_and_wrong_ones_end_but_not_for_ever() -> None:
    drafter = cheap()
    one = sequence("abcdefghijklmnopqr" * 3, max_tokens=50)
    first = drafter.guess([one], 99)[one]
    for _ in range(20):
        drafter.learn(one, 8, 8)
    grown = drafter.guess([one], 99)[one]
    assert len(first) < len(grown) == MOST_TOKENS
    for _ in range(60):
        drafter.learn(one, 8, 0)
    asked = [len(drafter.guess([one], 99).get(one, ())) for _ in range(300)]
    assert asked[0] == 0
    assert asked[-1] > 0
    assert (drafter.guessed, drafter.right) == (80 * 8, 20 * 8)


class Echo:
    """A model that says `answer` for ever, and is asked for all rows of a span at once."""

    def __init__(self, answer: str) -> None:
        self.answer = [ord(letter) for letter in answer]
        self.steps = 0

    def forward(self, batch: Batch) -> list[Sampled]:
        self.steps += 1
        spans = [span for span in batch.spans if span.samples]
        chosen = [
            Sampled(self._token(span.sequence.output_length + ahead))
            for span in spans
            for ahead in range(1 + len(span.guess))
        ]
        return confirmed([span.guess for span in spans], chosen)

    def _token(self, place: int) -> int:
        return self.answer[place] if place < len(self.answer) else EOS


def test_a_span_yields_what_was_guessed_right_and_one_more() -> None:
    chosen = list(map(Sampled, (1, 2, 9, 5, 7, None)))
    first, second, third = confirmed([(1, 2), (6,), ()], chosen)
    assert first == Sampled(1, more=(Sampled(2), Sampled(9)))
    assert second == Sampled(5)
    assert third == Sampled(None)


def run(model: Echo, drafter: Drafter | None, prompt: str, **fields: object) -> Sequence:
    one = sequence(prompt, **{"max_tokens": 80, **fields})  # type: ignore[arg-type]
    of = Scheduler(BlockPool(50), 4, 64, 4, drafter=drafter)
    of.add(one)
    while batch := of.next_batch():
        (span,) = batch.spans
        assert span.start + span.count <= len(one.blocks.numbers) * BLOCK_TOKENS
        assert span.start == one.computed
        of.advance(batch, model.forward(batch))
        assert one.finish_reason or one.computed == len(one.token_ids) - 1
    assert of.pool.available == 50
    return one


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, FinishReason.STOP),
        ({"max_tokens": 31}, FinishReason.LENGTH),
        ({"stop": ("quick brown cow",)}, FinishReason.STOP),
        ({"stop_token_ids": frozenset({ord("!")})}, FinishReason.STOP),
    ],
    ids=["end of sequence", "longest answer", "stop string", "stop token"],
)
def test_an_answer_is_the_same_in_fewer_steps(fields: dict[str, object], reason: object) -> None:
    answer = "the quick brown fox, the quick brown cow, the quick brown fox! And so on."
    plain = Echo(answer)
    fast = Echo(answer)
    expected = run(plain, None, "say it", **fields)
    found = run(fast, cheap(), "say it", **fields)
    assert (found.token_ids, found.finish_reason) == (expected.token_ids, expected.finish_reason)
    assert found.finish_reason is reason
    assert fast.steps < 0.9 * plain.steps


def test_no_guess_shares_a_step_with_a_prompt() -> None:
    of = Scheduler(BlockPool(50), 4, 64, 4, drafter=cheap())
    model = Echo("abcdef abcdef abcdef")
    of.add(sequence("abcdef abc", max_tokens=50, name="a"))
    of.advance(batch := of.next_batch() or Batch(()), model.forward(batch))
    of.add(sequence("xyz" * 5, max_tokens=50, name="b"))
    mixed = of.next_batch()
    assert mixed
    assert not any(span.guess for span in mixed.spans)


def test_a_span_whose_step_fails_is_computed_without_its_guess() -> None:
    class Fails(Echo):
        def forward(self, batch: Batch) -> list[Sampled]:
            if any(span.guess for span in batch.spans):
                raise MemoryError
            return super().forward(batch)

    of = Scheduler(BlockPool(50), 4, 64, 4, drafter=cheap())
    one = sequence("abcabcabc", max_tokens=50)
    of.add(one)
    careful = CarefulRunner(Fails("abcabc"))  # type: ignore[arg-type]
    for _ in range(3):
        batch = of.next_batch()
        assert batch
        outcome = careful.run(batch)
        assert not outcome.failed
        of.advance(outcome.batch, outcome.sampled)
    assert "".join(map(chr, one.token_ids)) == "abcabcabc" + "abc"
