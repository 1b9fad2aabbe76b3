"""The tokens of an answer as they stand in it:
their texts, and their bytes, add up to the answer's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llm_runtime.job import Job, Prompt
from llm_runtime.request import Detokenizer, TextCodec, TokenEvent, TopLogprob


@dataclass(frozen=True, slots=True)
class Spelling:
    """One token: the text that it adds ("" while bytes of a character are missing),
    and its bytes."""

    event: TokenEvent
    text: str
    own: bytes
    name: str = ""
    """What it is called, if it is not part of the text."""
    rivals: tuple[tuple[TopLogprob, bytes], ...] = ()
    """Tokens that might have come in its place, with their bytes."""


class Spelled:
    """The tokens of one choice, in their order.
    Those that are not part of its text, such as its end, are left out, or have a name."""

    def __init__(self, text: Detokenizer, name: Callable[[int], str] | None = None) -> None:
        self._text = text
        self._name = name

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
                found.append(Spelling(event, text, own, rivals=rivals))
            elif self._name:
                found.append(Spelling(event, "", b"", self._name(event.token_id), rivals))
        if found and ended and (rest := self._text.flush()):
            found[-1] = replace(found[-1], text=found[-1].text + rest)
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
    begun = [_continued(job, prompt, codec) for prompt in job.prompts]
    # Whoever has the prompt echoed counts tokens.
    name = codec.token_text if job.echo else None
    return [
        Spelled(codec.detokenizer(prompt, job.shown_token_ids), name)
        for prompt in begun
        for _ in range(job.n)
    ]


def _continued(job: Job, prompt: Prompt, codec: TextCodec) -> tuple[int, ...]:
    """Tokens of the text that a choice goes on from; none if it begins one."""
    last = prompt[-1]
    if isinstance(last, dict):
        return tuple(codec.encode(last["content"])) if job.ending == "continued" else ()
    return (
        tuple(codec.encode(prompt))
        if isinstance(prompt, str)
        else tuple(t for t in prompt if isinstance(t, int))
    )
