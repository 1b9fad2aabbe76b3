"""Log probabilities of prompts on their way through the scheduler: none is skipped, none comes twice."""

from typing import Any

import pytest

from llm_runtime.engine.recovery import CarefulRunner
from llm_runtime.engine.scheduler import Batch, Scheduler
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.machine.memory import StepOutOfMemory
from llm_runtime.request import FinishReason, TokenEvent
from unit.runtime.engine.fakes import ScriptedRunner, scheduler, sequence

PROMPT = "p" * 70


def scored(max_tokens: int = 2, name: str = "s", prompt: str = PROMPT) -> Sequence:
    return sequence(prompt, max_tokens, name, prompt_logprobs=0)


def served(of: Scheduler, runner: Any, *sequences: Sequence) -> dict[str, list[TokenEvent]]:
    for one in sequences:
        of.add(one)
    careful = CarefulRunner(runner)
    events: dict[str, list[TokenEvent]] = {one.request.id: [] for one in sequences}
    while batch := of.next_batch():
        outcome = careful.run(batch)
        deliveries = of.advance(outcome.batch, outcome.sampled)
        deliveries += of.fail([failed for failed, _ in outcome.failed], "it failed")
        for delivery in deliveries:
            events[delivery.sequence.request.id].append(delivery.event)
    return events


def places(event: TokenEvent) -> list[int]:
    """Whose log probabilities came, in their order; by `ScriptedRunner` these are the places."""
    assert event.prompt_logprobs
    return [-int(value) for value in event.prompt_logprobs.logprobs]


@pytest.mark.parametrize("tokens", [16, 32, 64, 69, 70, 100])
def test_each_token_but_the_first_is_scored_once_whatever_the_chunks(tokens: int) -> None:
    events = served(scheduler(tokens=tokens), ScriptedRunner(), scored())["s"]
    assert places(events[0]) == list(range(1, 70))
    assert events[1].prompt_logprobs is None


def test_what_the_cache_knows_is_computed_all_the_same_and_stays_known_to_others() -> None:
    one = scheduler()
    runner = ScriptedRunner()
    served(one, runner, sequence(PROMPT, 2, "before"))
    both = served(one, runner, scored(), sequence(PROMPT, 2, "beside"))
    assert places(both["s"][0]) == list(range(1, 70))
    assert (both["s"][0].cached_tokens, both["beside"][0].cached_tokens) == (0, 64)
    assert one.pool.available == one.pool.size


def test_nothing_is_generated_where_max_tokens_is_0() -> None:
    [event] = served(scheduler(), ScriptedRunner(), scored(max_tokens=0))["s"]
    assert (event.token_id, event.text, event.finish_reason) == (None, "", FinishReason.LENGTH)
    assert places(event) == list(range(1, 70))
    [plain] = served(scheduler(), ScriptedRunner(), sequence(PROMPT, 0, "s"))["s"]
    assert (plain.finish_reason, plain.prompt_logprobs) == (FinishReason.LENGTH, None)


def test_a_prompt_of_one_token_has_none() -> None:
    [event] = served(scheduler(), ScriptedRunner(), scored(max_tokens=0, prompt="p"))["s"]
    assert places(event) == []


def test_chunks_that_are_halved_for_their_memory_lose_none() -> None:
    def fail(batch: Batch) -> None:
        if batch.tokens > 9:
            raise StepOutOfMemory("full")

    events = served(scheduler(), ScriptedRunner(fail=fail), scored())["s"]
    assert places(events[0]) == list(range(1, 70))


def test_what_is_no_number_is_an_error() -> None:
    class Broken(ScriptedRunner):
        def _answer(self, span: Any) -> Sampled:
            found = super()._answer(span)
            if found.prompt:
                found.prompt.logprobs[0] = float("nan")
            return found

    [event] = served(scheduler(), Broken(), scored())["s"]
    assert event.finish_reason is FinishReason.ERROR
    assert "no numbers" in (event.error or "")
