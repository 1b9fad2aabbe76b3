"""The tokens of an answer as they stand in it: their texts, and their bytes, add up to the answer's."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_runtime.job import Job, is_conversation
from llm_runtime.request import TextCodec, TokenEvent, TopLogprob


@dataclass(frozen=True, slots=True)
class Spelling:
    """One token: what it adds to the text, which is "" while bytes of a character are missing, and its bytes."""

    event: TokenEvent
    text: str
    own: bytes
    rivals: tuple[tuple[TopLogprob, bytes], ...] = ()
    """Those that might have come in its place, with their bytes."""


class Spelled:
    """The tokens of one choice, in their order. Those that are not part of its text, such as its end, are left out."""

    def __init__(self, job: Job, codec: TextCodec, index: int) -> None:
        """`index`: the choice's, among all of the job's."""
        self._text = codec.detokenizer(_continued(job, codec, index), job.shown_token_ids)

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
        return self._text.bytes_of(rival.token_id) if "\ufffd" in rival.text else rival.text.encode()


def spelled(job: Job, codec: TextCodec, index: int) -> Spelled | None:
    """For one choice of a job; None if it asks for no log probabilities."""
    return None if job.sampling.logprobs is None else Spelled(job, codec, index)


def _continued(job: Job, codec: TextCodec, index: int) -> tuple[int, ...]:
    """Tokens of the text that the choice goes on from; none if it begins one."""
    prompt = job.prompts[index // job.n]
    if is_conversation(prompt):
        return ()
    return tuple(codec.encode(prompt)) if isinstance(prompt, str) else tuple(t for t in prompt if isinstance(t, int))
