"""The tokens of an answer as they stand in it:
their texts, and their bytes, add up to the answer's."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_runtime.job import Job, Prompt, is_conversation
from llm_runtime.request import Detokenizer, TextCodec, TokenEvent, TopLogprob


@dataclass(frozen=True, slots=True)
class Spelling:
    """One token: the text that it adds ("" while bytes of a character are missing),
    and its bytes."""

    event: TokenEvent
    text: str
    own: bytes
    rivals: tuple[tuple[TopLogprob, bytes], ...] = ()
    """Tokens that might have come in its place, with their bytes."""


class Spelled:
    """The tokens of one choice, in their order.
    Those that are not part of its text, such as its end, are left out."""

    def __init__(self, text: Detokenizer) -> None:
        self._text = text

    def take(self, events: Iterable[TokenEvent], *, ended: bool) -> list[Spelling]:
        """The next events of the choice; `ended`: there are no more."""
        found = []
        for event in events:
            if event.token_id is None:
                continue
            own = self._text.bytes_of(event.token_id)
            rivals = tuple((rival, self._bytes(rival)) for rival in event.top_logprobs)
            text = self._text.push(event.token_id)
            if own or text:
                found.append(Spelling(event, text, own, rivals))
        if found and ended and (rest := self._text.flush()):
            last = found[-1]
            found[-1] = Spelling(last.event, last.text + rest, last.own, last.rivals)
        return found

    def _bytes(self, rival: TopLogprob) -> bytes:
        # Part of a character has no text of its own.
        return (
            self._text.bytes_of(rival.token_id) if "\ufffd" in rival.text else rival.text.encode()
        )


def spelled(job: Job, codec: TextCodec) -> list[Spelled | None]:
    """For each choice of a job, in their order; None if it asks for no log probabilities."""
    if job.sampling.logprobs is None:
        return [None] * (len(job.prompts) * job.n)
    return [*of_each_choice(job, codec)]


def of_each_choice(job: Job, codec: TextCodec) -> list[Spelled]:
    """In their order. A prompt is encoded once, however many choices go on from it."""
    begun = [_continued(prompt, codec) for prompt in job.prompts]
    return [
        Spelled(codec.detokenizer(prompt, job.shown_token_ids))
        for prompt in begun
        for _ in range(job.n)
    ]


def _continued(prompt: Prompt, codec: TextCodec) -> tuple[int, ...]:
    """Tokens of the text that a choice goes on from; none if it begins one."""
    if is_conversation(prompt):
        return ()
    return (
        tuple(codec.encode(prompt))
        if isinstance(prompt, str)
        else tuple(t for t in prompt if isinstance(t, int))
    )
