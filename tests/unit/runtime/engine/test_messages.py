"""The wire: what goes in comes out, however it is cut."""

import pickle

import pytest

from llm_runtime.engine.messages import (
    EngineFigures,
    Frames,
    StepReport,
    Submit,
    frame,
    packed,
    unpacked,
)
from llm_runtime.request import FinishReason, TokenEvent, TopLogprob
from unit.runtime.engine.fakes import request

EVENTS = [
    TokenEvent(5, "a"),
    TokenEvent(5, ""),
    TokenEvent(5, "a", -0.5, (TopLogprob(5, "a", -0.5), TopLogprob(6, "b", -1.0))),
    TokenEvent(5, "a", cached_tokens=7),
    TokenEvent(5, "a", finish_reason=FinishReason.LENGTH),
    TokenEvent(5, "a", finish_reason=FinishReason.STOP, stopped_by="END"),
    TokenEvent(None, "held", finish_reason=FinishReason.ERROR, error="why"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_survives(event: TokenEvent) -> None:
    fields = packed(3, event)
    assert fields[0] == 3
    assert unpacked(pickle.loads(pickle.dumps(fields))) == event


def test_a_common_event_is_three_fields() -> None:
    assert packed(3, TokenEvent(5, "a")) == (3, 5, "a")


@pytest.mark.parametrize("size", [1, 3, 4, 7, 1000])
def test_messages_come_whole_from_pieces_of_any_size(size: int) -> None:
    sent: list[Submit | StepReport] = [
        Submit(1, 1, request()),
        StepReport([(1, 5, "a")], EngineFigures(1)),
        StepReport([], EngineFigures()),
    ]
    data = b"".join(map(frame, sent))
    frames = Frames()
    received = [
        message
        for start in range(0, len(data), size)
        for message in frames.feed(data[start : start + size])
    ]
    assert received == sent
