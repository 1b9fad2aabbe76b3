"""What the pipeline does with texts to embed, where it would check and continue prompts."""

from collections.abc import Sequence

from llm_runtime import errors
from llm_runtime.contract import EMBEDDINGS_PATH
from llm_runtime.job import Job, too_many_letters
from llm_runtime.request import GenerationRequest

OTHER_TASK = "model_not_supported"
"""Code of the error for a model that does something else than is asked."""


def other_task(name: str, *, embeds: bool) -> errors.InvalidRequest:
    """The refusal of a job that the model called `name` is not for; `embeds` says what it does."""
    message = (
        f"The model {name!r} makes embeddings and generates nothing; ask it at {EMBEDDINGS_PATH}."
        if embeds
        else f"The model {name!r} generates texts and makes no embeddings; ask a model that does."
    )
    return errors.InvalidRequest(message, param="model", code=OTHER_TASK)


def check_texts(job: Job, limit: int) -> int:
    """Characters and tokens of all texts. Raises `errors.InvalidRequest` for one of over `limit`
    characters: the texts are no one prompt."""
    for number, text in enumerate(job.prompts):
        if isinstance(text, str) and len(text) > limit:
            raise too_many_letters(_place(job, number), limit, len(text), "split the text")
    return sum(map(len, job.prompts))


def text_requests(
    job: Job, texts: Sequence[list[int]], most_tokens: int
) -> list[GenerationRequest]:
    """The engine's requests for texts of token ids.
    Raises `errors.InvalidRequest` for one without tokens, or with over `most_tokens`."""
    return [_request(job, number, ids, most_tokens) for number, ids in enumerate(texts)]


def _request(job: Job, number: int, ids: list[int], most_tokens: int) -> GenerationRequest:
    place = _place(job, number)
    if not ids:
        raise errors.InvalidRequest(f"{place} has no tokens; send some text.", param=place)
    if len(ids) > most_tokens:
        message = (
            f"This model's maximum context length is {most_tokens} tokens. However, {place} has"
            f" {len(ids)} tokens. Please reduce its length, or split it."
        )
        raise errors.InvalidRequest(message, param=place, code="context_length_exceeded")
    return GenerationRequest(
        id=f"{job.id}-{number}",
        prompt_token_ids=tuple(ids),
        sampling=job.sampling,
        priority=job.caller.tier.priority,
        tenant=job.caller.id,
        embeds=True,
        unpooled_tokens=job.unpooled_tokens,
    )


def _place(job: Job, number: int) -> str:
    """The dialect's name of one text."""
    return job.prompt_field if len(job.prompts) == 1 else f"{job.prompt_field}[{number}]"
