"""Text, stop strings and the end of one sequence."""

from typing import Any

import pytest

from llm_runtime.engine.sequence import Sampled, held_back
from llm_runtime.request import FinishReason, TokenEvent
from unit.runtime.engine.fakes import EOS, sequence


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
    assert "".join(event.text for event in run("abcd", stop=("cd", "bc"))) == "a"


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
