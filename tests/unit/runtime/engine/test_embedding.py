"""The queue of texts to embed: whole texts, bounded tokens, tenants in turn. No torch."""

from llm_runtime.engine.recovery import CarefulRunner
from llm_runtime.engine.scheduler import Batch, EmbeddingScheduler
from llm_runtime.engine.sequence import Sampled, Sequence
from llm_runtime.machine.memory import StepOutOfMemory
from llm_runtime.request import FinishReason, GenerationRequest, Sampling
from unit.runtime.engine.fakes import CharacterVocabulary, ScriptedRunner


def text(tokens: int, tenant: str = "a", priority: int = 0) -> Sequence:
    request = GenerationRequest(
        f"{tenant}{tokens}",
        (7,) * tokens,
        Sampling(0),
        tenant=tenant,
        priority=priority,
        embeds=True,
    )
    return Sequence(request, CharacterVocabulary())


def ids(batch: Batch | None) -> list[str]:
    assert batch
    return [span.sequence.request.id for span in batch.spans]


def end(scheduler: EmbeddingScheduler, batch: Batch | None) -> None:
    assert batch
    scheduler.advance(batch, [Sampled(None, embedding="AAAA") for _ in batch.spans])


def test_a_step_has_whole_texts_up_to_its_tokens_and_one_longer_text_alone() -> None:
    scheduler = EmbeddingScheduler(8, 100, 10)
    for tokens in (60, 30, 20, 300, 5):
        scheduler.add(text(tokens))
    steps = []
    while not scheduler.idle:
        batch = scheduler.next_batch()
        steps.append(ids(batch))
        end(scheduler, batch)
    assert steps == [["a60", "a30"], ["a20"], ["a300"], ["a5"]]
    assert scheduler.usage_ratio == 0
    assert scheduler.prompt_tokens == 415


def test_one_text_of_another_tenant_does_not_wait_behind_many() -> None:
    scheduler = EmbeddingScheduler(4, 100, 100)
    for tokens in range(10, 20):
        scheduler.add(text(tokens))
    scheduler.add(text(9, tenant="b"))
    scheduler.add(text(8, tenant="c", priority=5))
    assert ids(scheduler.next_batch()) == ["c8", "a10", "b9", "a11"]


def test_the_last_event_is_the_vector_or_says_that_there_was_none() -> None:
    scheduler = EmbeddingScheduler(4, 100, 10)
    scheduler.add(text(3))
    scheduler.add(text(4))
    batch = scheduler.next_batch()
    assert batch
    good, bad = scheduler.advance(batch, [Sampled(None, embedding="AAAA"), Sampled(None)])
    assert (good.event.text, good.event.finish_reason) == ("AAAA", FinishReason.STOP)
    assert bad.event.finish_reason is FinishReason.ERROR
    assert scheduler.idle


def test_a_text_that_memory_does_not_hold_fails_alone_and_is_never_cut() -> None:
    class Small(ScriptedRunner):
        def forward(self, batch: Batch) -> list[Sampled]:
            if batch.tokens > 50:
                raise StepOutOfMemory("too much")
            return [Sampled(None, embedding="AAAA") for _ in batch.spans]

    scheduler = EmbeddingScheduler(4, 200, 10)
    for tokens in (20, 80, 25):
        scheduler.add(text(tokens))
    batch = scheduler.next_batch()
    assert batch
    outcome = CarefulRunner(Small()).run(batch)
    assert [sequence.request.id for sequence, _ in outcome.failed] == ["a80"]
    assert ids(outcome.batch) == ["a20", "a25"]
