"""The first generation at start-up.
The logit check does not show whether a request gets through the scheduler."""

from llm_runtime.engine.recovery import CarefulRunner, Runner
from llm_runtime.engine.scheduler import Scheduler
from llm_runtime.engine.sequence import Sequence, Vocabulary
from llm_runtime.errors import ModelUnsupported, OutOfMemory
from llm_runtime.machine.memory import KV_CACHE_FIELD
from llm_runtime.request import FinishReason, GenerationRequest, Sampling

TOKENS = 4
MEMORY_FAULTS = {"StepOutOfMemory", "MemoryError"}


def warm_up(
    scheduler: Scheduler, runner: Runner, vocabulary: Vocabulary, prompt: list[int], length: int
) -> int:
    """Generate and sample a few tokens as for a request, and return their number.
    `length` bounds the sequence.

    Raises OutOfMemory, or ModelUnsupported with the step's error.
    """
    prompt = prompt[: max(1, length - TOKENS)]
    sampling = Sampling(
        max_tokens=min(TOKENS, length - len(prompt)), top_p=0.9, seed=0, ignore_eos=True
    )
    careful = CarefulRunner(runner)
    scheduler.add(Sequence(GenerationRequest("warm-up", tuple(prompt), sampling), vocabulary))
    count = 0
    while batch := scheduler.next_batch():
        outcome = careful.run(batch)
        if outcome.failed:
            scheduler.end_all(FinishReason.ERROR)
            raise _refusal(outcome.failed[0][1].name)
        count += sum(
            delivery.event.token_id is not None
            for delivery in scheduler.advance(outcome.batch, outcome.sampled)
        )
    if not count:
        raise _refusal("an answer without tokens")
    return count


def _refusal(name: str) -> OutOfMemory | ModelUnsupported:
    if name in MEMORY_FAULTS:
        return OutOfMemory(
            "the model is loaded, but there is no memory for its first generation; lower"
            f" engine.maxBatchTokens or {KV_CACHE_FIELD}, or raise the memory limit"
        )
    return ModelUnsupported(
        f"the model is loaded, but its first generation failed: {name}; the lines above say where"
    )
