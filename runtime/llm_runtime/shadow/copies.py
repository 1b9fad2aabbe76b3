"""Sends copies of answered requests to candidates. A copy that would wait, or that is too
large, is dropped."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import random
from typing import Any

import orjson

from llm_runtime.common.aside import aside
from llm_runtime.contract import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    EMBEDDINGS_PATH,
    MESSAGES_PATH,
    RESPONSES_PATH,
    SHADOW_HEADER,
)
from llm_runtime.generation import Choice
from llm_runtime.job import NOT_ASKED, Job
from llm_runtime.request import Caller
from llm_runtime.shadow import agreement, exchange
from llm_runtime.shadow.agreement import ModelAnswer
from llm_runtime.shadow.orders import Order, Orders
from llm_runtime.shadow.tally import Counts, Tally

log = logging.getLogger(__name__)

PATHS: Mapping[str, str] = {
    CHAT_PATH: CHAT_PATH,
    COMPLETIONS_PATH: COMPLETIONS_PATH,
    MESSAGES_PATH: MESSAGES_PATH,
    RESPONSES_PATH: RESPONSES_PATH,
    EMBEDDINGS_PATH: EMBEDDINGS_PATH,
    "/v1/generate": "/v1/generate",
    "/v1/stream": "/v1/generate",
    "/v1/chat": "/v1/chat",
}
"""What is copied, and where a copy asks: never for a stream."""
NOT_COPIED = ("stream", "stream_options")
"""Fields that a copy leaves out."""
REFERRING = ("session_id", "previous_response_id", "background")
"""Fields by which a request refers to what this server keeps."""
HELD_BYTES = 16 << 20
"""All bodies together that are kept until their requests are answered, and their copies too."""
LARGE_CHARACTERS = 16 << 10
"""Bodies and answers above this are worked on in a thread: it takes milliseconds."""
LEAST_SECONDS = 30.0
TIMES = 10.0
"""A candidate may take so many times as long as stable did, and LEAST_SECONDS always."""
BUSY = frozenset({401, 403, 408, 429, 503})
"""Answers of a candidate that has no room, is starting or was not told yet:
they say nothing of its version."""
UNLOADED = 404
"""The same of a candidate of an adapter: the pod had it loaded, and has not any more."""


@dataclass(slots=True)
class Heard:
    """Listens to one answer."""

    said: ModelAnswer | None = None
    """Once it is whole; None for one that is not compared."""
    greedy: bool = False

    def answered(self, job: Job, choices: Sequence[Choice], seconds: float) -> None:
        if len(choices) > 1:
            return  # They would have to be matched, and are no independent samples.
        [choice] = choices
        self.said = ModelAnswer(
            choice.text, choice.finish_reason, choice.tokens, seconds, vector=job.embeds
        )
        self.greedy = job.sampling.temperature == 0 or job.sampling.top_k == 1

    def document(self) -> dict[str, Any]:
        """The answer for the pod that sent the copy."""
        answer = self.said
        if answer is None:
            return {}
        return {
            "text": answer.text,
            "reason": answer.finish_reason,
            "tokens": answer.tokens,
            "seconds": answer.seconds,
            "vector": answer.vector,
        }


@dataclass(slots=True)
class Copy(Heard):
    """A request that is to be copied once it is answered."""

    path: str = ""
    host: str = ""
    """As the client wrote it: a server may answer to some only."""
    server: str = ""
    """Address at which this server got the request; empty where it has none."""
    model: str = ""
    """Name of this server's model."""
    draw: float = 0.0
    """0 to 100: it is copied where a larger share is wanted."""
    adapter: str = ""
    """Who answered; empty for the model itself."""
    under_way: int = 0
    """Copies of it that have not ended."""
    most_tokens: Callable[[Caller], int | None] = field(default=lambda caller: None)
    """What a caller's limits leave for one request."""
    body: bytes | bytearray = b""

    def answered(self, job: Job, choices: Sequence[Choice], seconds: float) -> None:
        # A caller's limits may have cut the answer, and the candidate knows nothing of them.
        if job.sampling.max_tokens != NOT_ASKED or self.most_tokens(job.caller) is None:
            self.adapter = job.adapter
            Heard.answered(self, job, choices, seconds)


class Copier:
    """Sends the copies of one pod. Only the event loop's thread touches it."""

    def __init__(
        self,
        orders: Orders,
        tally: Tally,
        most_tokens: Callable[[Caller], int | None] = lambda caller: None,
    ) -> None:
        self.orders = orders
        self._tally = tally
        self._most_tokens = most_tokens
        self._sending = dict[str, set[asyncio.Task[None]]]()
        """By candidate."""
        self.held_bytes = 0

    async def __aenter__(self) -> "Copier":
        return self

    async def __aexit__(self, *exc: object) -> None:
        running = [task for tasks in self._sending.values() for task in tasks]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def choose(self, path: str, host: str, server: str = "", model: str = "") -> Copy | None:
        """What follows a request that has just come, if it is one to be copied.

        `server`: the address of this one. `model`: what it serves.
        """
        orders = self.orders.copying if path in PATHS else ()
        draw = random() * 100
        if all(draw >= order.percent for order in orders):
            return None
        self._tally.follow([order.candidate for order in orders])
        return Copy(
            path=path,
            host=host,
            server=server,
            model=model,
            draw=draw,
            most_tokens=self._most_tokens,
        )

    def hold(self, copy: Copy, body: bytes | bytearray) -> None:
        """Keep the request's body, where there is room for it. `send` lets go of it."""
        if self.held_bytes + len(body) <= HELD_BYTES:
            self.held_bytes += len(body)
            copy.body = body

    def send(self, copy: Copy) -> None:
        """The request is answered, or was not: send its copies, or drop them."""
        for order in self.orders.copying if copy.said else ():
            counts = self._tally.of(order.candidate)
            if counts and _asked_for(copy, order):
                self._begin(copy, order, counts)
        if not copy.under_way:
            self.held_bytes -= len(copy.body)

    def _begin(self, copy: Copy, order: Order, counts: Counts) -> None:
        sending = self._sending.setdefault(order.candidate, set())
        if not copy.body or len(sending) >= order.max_in_flight:
            counts.result("dropped")
            return

        def over(task: asyncio.Task[None]) -> None:
            sending.discard(task)
            if not sending:
                self._sending.pop(order.candidate, None)
            copy.under_way -= 1
            if not copy.under_way:
                self.held_bytes -= len(copy.body)

        task = asyncio.create_task(self._follow(copy, order, counts))
        sending.add(task)
        copy.under_way += 1
        task.add_done_callback(over)

    async def _follow(self, copy: Copy, order: Order, counts: Counts) -> None:
        """Send one copy and note what came of it."""
        try:
            result, candidate = await self._ask(copy, order)
            if result != "skipped":
                await self._note(copy, counts, result, candidate)
        except Exception:
            log.exception("A copy for %s failed", order.candidate)

    async def _ask(self, copy: Copy, order: Order) -> tuple[str, ModelAnswer | None]:
        """How it ended, and what the candidate said."""
        stable = copy.said
        assert stable is not None
        model = f"{copy.model}:{order.candidate}" if order.adapter else None
        body = await _beside(len(copy.body), without_stream, copy.body, model)
        if body is None:
            return "skipped", None
        headers = {"host": copy.host, SHADOW_HEADER: order.token}
        seconds = max(LEAST_SECONDS, TIMES * stable.seconds)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                url = order.url or copy.server
                status, content = await exchange.post(url, PATHS[copy.path], headers, body)
        except (OSError, ValueError):
            return (
                ("late", ModelAnswer("", "", 0, seconds)) if deadline.expired() else ("lost", None)
            )
        if status in BUSY or (order.adapter and status == UNLOADED):
            return "refused", None
        answer = read(content) if status == 200 else None
        return ("compared", answer) if answer else ("failed", None)

    async def _note(
        self, copy: Copy, counts: Counts, result: str, candidate: ModelAnswer | None
    ) -> None:
        stable = copy.said
        assert stable is not None
        counts.result(result)
        if result == "compared" and candidate:
            length = len(stable.text) + len(candidate.text)
            counts.compared(
                await _beside(length, agreement.differences, stable, candidate, greedy=copy.greedy)
            )
            if not stable.vector:
                counts.sized(stable, candidate)
        elif result in ("failed", "late"):
            counts.compared(agreement.failure(stable, greedy=copy.greedy))
        if candidate:
            counts.timed(stable, candidate)


def _asked_for(copy: Copy, order: Order) -> bool:
    """Whether the order is about this request."""
    own = not order.adapter or (order.adapter == copy.adapter and bool(copy.server))
    return own and copy.draw < order.percent


async def _beside(size: int, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`work` here, or in a thread where it is long."""
    return await aside(work, *args, **kwargs) if size > LARGE_CHARACTERS else work(*args, **kwargs)


def without_stream(body: bytes | bytearray, model: str | None = None) -> bytes | None:
    """The request, for a whole answer, of another `model` where one is given;
    None for one that refers to what the candidate does not have, or is not waited for."""
    fields = orjson.loads(body)
    if any(fields.get(name) not in (None, False) for name in REFERRING) or _refers(
        fields.get("input")
    ):
        return None
    named = {} if model is None else {"model": model}
    kept = {name: value for name, value in fields.items() if name not in NOT_COPIED}
    return orjson.dumps(kept | named)


def _refers(items: Any) -> bool:
    """Whether the input of a response refers to an item of another one."""
    return isinstance(items, list) and any(
        item.get("type") == "item_reference" or ("role" not in item and not item.get("type"))
        for item in items
    )


def read(content: bytes) -> ModelAnswer | None:
    """What a candidate said, from `Heard.document`; None for anything else."""
    try:
        found = orjson.loads(content)
        return ModelAnswer(
            str(found["text"]),
            str(found["reason"]),
            int(found["tokens"]),
            float(found["seconds"]),
            bool(found.get("vector")),
        )
    except (ValueError, TypeError, KeyError):
        return None
