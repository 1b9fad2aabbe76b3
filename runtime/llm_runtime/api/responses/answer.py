"""The answer to one request: whole, or as the numbered events of a stream; and how it is kept."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from json.encoder import encode_basestring as quoted
from typing import Any

from llm_runtime import errors
from llm_runtime.api.openai.common import logprob
from llm_runtime.api.responses.ask import Ask
from llm_runtime.api.responses.document import document, ended, usage
from llm_runtime.api.responses.ids import input_id
from llm_runtime.api.responses.output import Event, Output
from llm_runtime.api.spelled import Spelling, spelled
from llm_runtime.common.aside import aside
from llm_runtime.pipeline import Choice, Generation, Pipeline, text_of
from llm_runtime.request import FinishReason, TokenEvent
from llm_runtime.sessions import RUNNING, Responses, Stored
from llm_runtime.stream import named_sse
from llm_runtime.tools.offer import Answers

LONG_CHARACTERS = 4000
"""Length from which thoughts are encoded in a thread."""
TEXT_DELTA = "response.output_text.delta"
ECHOED = ("instructions", "metadata", "tools", "text", "user", "safety_identifier")
"""Fields of a response that hold what its client wrote."""


class Answer:
    """One response while it is made."""

    def __init__(
        self,
        ask: Ask,
        generation: Generation,
        pipeline: Pipeline,
        answers: Answers,
        store: Responses | None,
        run_until: float = 0.0,
    ) -> None:
        """`store`: where it is kept; None if it is not.
        `run_until`: when it has ended in any case, if it runs in the background."""
        self.generation = generation
        self._ask = ask
        self._pipeline = pipeline
        self._store = store
        self._run_until = run_until
        self._reader = answers.reader()
        [self._spelled] = spelled(generation.job, pipeline.codec)
        self._output = Output(generation.job.id, answers)
        self._number = 0
        """Number of the next event."""
        self._id = generation.job.id
        self.document = document(ask, generation, pipeline, stored=store is not None)
        """The response as far as it is known."""

    async def begin(self) -> None:
        """Keep it as one that runs in the background."""
        if self._store:
            await self._store.add(self._tenant, self._stored())

    async def goes_on(self) -> bool:
        """Whether nobody has cancelled or deleted it since `begin`."""
        found = await self._store.find(self._tenant, [self._id]) if self._store else {}
        return self._id in found and found[self._id].status == RUNNING

    async def whole(self, choice: Choice) -> dict[str, Any]:
        """The response that a whole answer makes, which is kept from now on."""
        for _ in self._take(choice.text, choice.events, choice.finish_reason):
            pass
        await self._end(choice.finish_reason)
        return self.document

    async def events(self) -> AsyncGenerator[bytes]:
        """All events, one at a time. The response is kept before the last one tells its end."""
        yield self._rendered("response.created", {"response": self.document})
        yield self._rendered("response.in_progress", {"response": self.document})
        reason = FinishReason.STOP
        async with aclosing(self.generation.bursts()) as bursts:
            async for _, burst in bursts:
                last = burst[-1].finish_reason
                reason = last or reason
                for event in self._take(text_of(burst), burst, last):
                    yield self._rendered(*event)
        await self._end(reason)
        yield self._rendered(f"response.{self.document['status']}", {"response": self.document})

    def failed(self, refusal: errors.Refusal) -> dict[str, Any]:
        """The last event of an answer that failed after it had begun."""
        error = {"code": "server_error", "message": refusal.message}
        output = self._output.items
        self.document |= {"status": "failed", "error": error, "output": output}
        return self._numbered("response.failed", {"response": self.document})

    async def fail(self, refusal: errors.Refusal) -> bytes:
        """The same for one that is kept already, which is kept as failed."""
        event = named_sse(self.failed(refusal))
        if self._store:
            await self._store.end(self._tenant, self._stored())
        return event

    def _take(
        self, text: str, events: Sequence[TokenEvent], reason: FinishReason | None
    ) -> Iterator[Event]:
        final = reason is not None
        cut = reason is FinishReason.LENGTH
        logprobs: list[dict[str, Any]] = []
        if self._spelled:
            logprobs = [_token(each) for each in self._spelled.take(list(events), ended=final)]
        yield from self._output.take(self._reader.take(text, final=final), logprobs, cut=cut)
        if final:
            yield from self._output.end(cut=cut)

    async def _end(self, reason: FinishReason) -> None:
        used = usage(self.generation, await self._thought_tokens())
        self.document = ended(self.document, self._output.items, used, reason)
        if self._store is None:
            return
        if self._run_until:
            await self._store.end(self._tenant, self._stored())
        else:
            await self._store.add(self._tenant, self._stored())

    async def _thought_tokens(self) -> int:
        """How many tokens the thoughts are. A cached answer does not tell, so they are counted
        anew."""
        thoughts = self._output.thoughts
        if not thoughts:
            return 0
        encode = self._pipeline.codec.encode
        long = len(thoughts) > LONG_CHARACTERS
        tokens = await aside(encode, thoughts) if long else encode(thoughts)
        return len(tokens) - len(encode(""))

    @property
    def _tenant(self) -> str:
        return self.generation.job.caller.id

    def _stored(self) -> Stored:
        masked = self._pipeline.masked
        asked = [
            item.kept(input_id(self._id, item.type, number), masked)
            for number, item in enumerate(self._ask.items)
        ]
        shown = {name: masked(self.document[name]) for name in ECHOED}
        return Stored({**self.document, **shown}, asked, list(self._ask.continues), self._run_until)

    def _rendered(self, type_: str, fields: dict[str, Any]) -> bytes:
        if type_ != TEXT_DELTA or fields["logprobs"]:
            return named_sse(self._numbered(type_, fields))
        # Most events are these: written out, they cost a fraction.
        number = self._number
        self._number += 1
        return (
            f'event: {type_}\ndata: {{"type":"{type_}","sequence_number":{number},'
            f'"item_id":"{fields["item_id"]}","output_index":{fields["output_index"]},'
            f'"content_index":0,"delta":{quoted(fields["delta"])},"logprobs":[]}}\n\n'
        ).encode()

    def _numbered(self, type_: str, fields: dict[str, Any]) -> dict[str, Any]:
        number = self._number
        self._number += 1
        return {"type": type_, "sequence_number": number, **fields}


def _token(each: Spelling) -> dict[str, Any]:
    rivals = [_entry(rival.text, rival.logprob, own) for rival, own in each.rivals]
    return {**_entry(each.text, each.event.logprob, each.own), "top_logprobs": rivals}


def _entry(text: str, value: float | None, own: bytes) -> dict[str, Any]:
    return {"token": text, "bytes": list(own), "logprob": logprob(value)}
