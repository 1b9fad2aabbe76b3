"""Text, stop strings and the end of one sequence."""

import itertools
import random
from typing import Any

import pytest

from llm_runtime.engine.sequence import Matcher, Sampled, Sequence, held_back
from llm_runtime.request import Constraint, FinishReason, TokenEvent
from llm_runtime.text.codec import Codec, codec_from_folder
from unit.runtime import tiny_model
from unit.runtime.engine.fakes import EOS, request, sequence


def run(text: str, **sampling: Any) -> list[TokenEvent]:
    one = sequence(max_tokens=len(text) + 1, **sampling)
    events = []
    for character in (*text, chr(EOS)):
        events.append(one.append(Sampled(ord(character))))
        if events[-1].finish_reason:
            break
    return events


def test_eos_ends_without_showing_and_keeps_its_token_id() -> None:
    events = run("hi")
    assert [event.text for event in events] == ["h", "i", ""]
    assert (events[-1].token_id, events[-1].finish_reason) == (EOS, FinishReason.STOP)


def test_ignore_eos_goes_on_to_the_length() -> None:
    one = sequence(max_tokens=2, ignore_eos=True)
    assert one.append(Sampled(EOS)).finish_reason is None
    assert one.append(Sampled(EOS)).finish_reason is FinishReason.LENGTH


def test_stop_token_ids_end_like_eos() -> None:
    events = run("abc", stop_token_ids=frozenset({ord("b")}))
    assert "".join(event.text for event in events) == "a"
    assert events[-1].finish_reason is FinishReason.STOP


def test_a_stop_string_over_token_borders_is_never_shown() -> None:
    events = run("one END two", stop=("END",))
    assert "".join(event.text for event in events) == "one "
    assert events[-1].finish_reason is FinishReason.STOP


def test_what_could_become_a_stop_string_is_held_back_and_released_when_it_does_not() -> None:
    events = run("aENxb", stop=("END",))
    assert [event.text for event in events] == ["a", "", "", "ENx", "b", ""]


def test_what_was_held_back_comes_with_the_last_event() -> None:
    one = sequence(max_tokens=2, stop=("END",))
    assert one.append(Sampled(ord("E"))).text == ""
    last = one.append(Sampled(ord("N")))
    assert (last.text, last.finish_reason) == ("EN", FinishReason.LENGTH)


def test_the_earliest_of_several_stop_strings_cuts() -> None:
    events = run("abcd", stop=("cd", "bc"))
    assert "".join(event.text for event in events) == "a"
    assert [event.stopped_by for event in events] == ["", "", "bc"]


def test_unfinished_characters_are_flushed_at_the_end() -> None:
    one = sequence(max_tokens=1)
    assert one.append(Sampled(1500)).text == chr(1500)


def test_cancelled_and_failed_end_without_a_token() -> None:
    event = sequence().finish(FinishReason.ERROR, "why")
    assert (event.token_id, event.finish_reason, event.error) == (None, FinishReason.ERROR, "why")


def test_logits_that_are_no_numbers_end_in_an_error() -> None:
    event = sequence().append(Sampled(None))
    assert event.finish_reason is FinishReason.ERROR
    assert event.token_id is None


def test_log_probabilities_carry_their_tokens_text() -> None:
    event = sequence(logprobs=2).append(Sampled(97, -0.5, ((97, -0.5), (98, -1.5))))
    assert event.logprob == -0.5
    assert [(top.text, top.logprob) for top in event.top_logprobs] == [("a", -0.5), ("b", -1.5)]


@pytest.mark.parametrize(
    ("text", "stops", "length"),
    [
        ("abc", (), 0),
        ("ab", ("abc",), 2),
        ("xa", ("abc",), 1),
        ("abc", ("abc",), 0),
        ("aa", ("aab", "ab"), 2),
        ("q", ("",), 0),
    ],
)
def test_held_back(text: str, stops: tuple[str, ...], length: int) -> None:
    assert held_back(text, stops) == length


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return codec_from_folder(tiny_model.make_tokenizer(tmp_path_factory.mktemp("tiny")))


TEXT = "Grüße 👋🏽 an END alle, ENDE\n\nUser: ähnlich\u200d END"


def delivered(vocabulary: Any, ids: list[int], **sampling: Any) -> tuple[str, FinishReason | None]:
    one = Sequence(request((0,), **sampling), vocabulary)
    text = ""
    for token_id in ids:
        event = one.append(Sampled(token_id))
        text += event.text
        if event.finish_reason:
            return text, event.finish_reason
    return text, None


@pytest.mark.parametrize("seed", range(40))
def test_texts_add_up_to_the_whole_wherever_it_is_cut(codec: Codec, seed: int) -> None:
    """One token a byte: most cuts lie inside a character."""
    chance = random.Random(seed)
    ids = codec.encode(TEXT)
    ids = [chance.randrange(256) if chance.random() < 0.05 else token_id for token_id in ids]
    count = chance.randint(1, len(ids))
    text, reason = delivered(codec, ids, max_tokens=count)
    assert (text, reason) == (codec.decode(ids[:count]), FinishReason.LENGTH)


@pytest.mark.parametrize("seed", range(40))
def test_no_stop_string_is_delivered_nor_anything_behind_it(seed: int) -> None:
    chance = random.Random(seed)
    starts = [chance.randrange(len(TEXT)) for _ in range(chance.randint(1, 4))]
    stops = tuple(TEXT[start : start + chance.randint(1, 6)] for start in starts)
    vocabulary = Pieces(TEXT, chance)
    text, reason = delivered(
        vocabulary, list(range(len(vocabulary.pieces))), max_tokens=1000, stop=stops
    )
    assert reason is FinishReason.STOP
    assert TEXT.startswith(text)
    assert not any(stop in text for stop in stops)
    assert any(TEXT.startswith(stop, len(text)) for stop in stops)


def test_a_stop_string_across_bytes_of_characters_is_found(codec: Codec) -> None:
    assert delivered(codec, codec.encode(TEXT), max_tokens=999, stop=("🏽 an",)) == (
        "Grüße 👋",
        FinishReason.STOP,
    )


def test_a_stop_token_inside_a_character_shows_what_decoding_shows(codec: Codec) -> None:
    ids = codec.encode("a👋")
    text, reason = delivered(codec, ids, max_tokens=99, stop_token_ids=frozenset({ids[-1]}))
    assert (text, reason) == (codec.decode(ids[:-1]), FinishReason.STOP)


class Pieces:
    """Tokens that are pieces of one text, cut anywhere."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, text: str, chance: random.Random) -> None:
        cuts = sorted({0, len(text), *(chance.randrange(len(text)) for _ in range(12))})
        self.pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]

    def detokenizer(self, prompt: object = (), shown: object = ()) -> "Pieces":
        return self

    def bytes_of(self, token_id: int) -> bytes:
        return self.pieces[token_id].encode()

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return ""

    def token_text(self, token_id: int) -> str:
        return self.pieces[token_id]

    def matcher(self, constraint: Constraint) -> Matcher:
        raise NotImplementedError


def test_a_constraint_advances_with_each_token_and_ends_without_the_end_token() -> None:
    one = sequence(constraint=Constraint("regex", "ab"))
    assert one.append(Sampled(ord("a"))).finish_reason is None
    last = one.append(Sampled(ord("b")))
    assert (last.text, last.finish_reason) == ("b", FinishReason.STOP)


def test_a_constraint_cut_by_max_tokens_ends_with_length() -> None:
    one = sequence(constraint=Constraint("regex", "abc"), max_tokens=1)
    assert one.append(Sampled(ord("a"))).finish_reason is FinishReason.LENGTH


def test_a_met_constraint_goes_on_to_the_length_when_the_end_is_ignored() -> None:
    one = sequence(constraint=Constraint("regex", "a"), max_tokens=2, ignore_eos=True)
    assert one.append(Sampled(ord("a"))).finish_reason is None
    assert one.append(Sampled(EOS)).finish_reason is FinishReason.LENGTH


def test_counts_hold_the_prompt_for_the_repetition_penalty_only() -> None:
    repetition = sequence("aab", repetition_penalty=1.1)
    frequency = sequence("aab", frequency_penalty=0.1)
    for one in (repetition, frequency):
        for character in "bcc":
            one.append(Sampled(ord(character)))
    assert _counted(repetition) == {"a": 0, "b": 1, "c": 2}
    assert _counted(frequency) == {"b": 1, "c": 2}
    assert sequence().counts is None


def _counted(one: Sequence) -> dict[str, float]:
    assert one.counts is not None
    return {
        chr(token): times
        for token, times in zip(one.counts.token_ids, one.counts.generated, strict=True)
    }
