"""`POST /load-probe`: a short, bounded load on this server's own engine,
for the operator that compares two versions.

It runs in this process, so that no network counts, and past the pipeline: nobody's limits, usage or
metrics have it. Clients come first: its requests have the lowest priority, and the probe is dropped
once clients queue.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import quantiles
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import Field

from llm_runtime import contract, errors
from llm_runtime.api.body import Body
from llm_runtime.api.guard import BodyRoute
from llm_runtime.api.server import server_of
from llm_runtime.auth.callers import authenticate, offered
from llm_runtime.contract import LoadFigures
from llm_runtime.machine.memory import server_bytes
from llm_runtime.request import Engine, GenerationRequest, Sampling

LOOK_SECONDS = 0.05
QUEUED_LOOKS = 5
"""Clients that wait for so many looks in a row queue;
a step that has just begun makes one wait for a look or two."""
PRIORITY = -1000
"""Below every tier's."""
LATE_SECONDS = 30.0
"""Seconds for requests that still run when the time of the probe is over. To cut them would leave
out the slow ones."""


class ProbeBody(Body):
    """How much load, and for how long.

    A model for embeddings is asked for embeddings of the prompts: an embedding is its first token, and
    the tokens per second are those of the prompts.
    """

    concurrency: Annotated[int, Field(ge=1, le=contract.PROBE_MAX_CONCURRENCY)]
    seconds: Annotated[float, Field(ge=0.1, le=contract.PROBE_MAX_SECONDS)]
    prompt_tokens: Annotated[int, Field(ge=1, le=contract.PROBE_MAX_PROMPT_TOKENS)]
    max_tokens: Annotated[int, Field(ge=2, le=contract.PROBE_MAX_TOKENS)]
    adapter: str = ""
    """Who answers: an adapter or a candidate of one; empty for the model itself."""


class ProbeRoute(BodyRoute):
    """A route for the operator alone."""

    async def admit(self, request: Request) -> None:
        server = server_of(request)
        if server.callers.keys is None:
            raise errors.Forbidden(
                "Only an operator probes a server, and none manages this one.", code="operator_only"
            )
        record = authenticate(server.callers.keys, offered(request), datetime.now(UTC))
        if not record.operator:
            raise errors.Forbidden(
                "Only the operator's own key may probe a server.", code="operator_only"
            )
        request.state.caller = server.callers.tiers.caller(record)


# Not for clients, so not on the pages that tell them what there is.
router = APIRouter(include_in_schema=False, route_class=ProbeRoute)


@router.post(contract.LOAD_PROBE_PATH, summary="A short load, for the operator")
async def probe(request: Request, body: ProbeBody) -> LoadFigures:
    """Speed and waiting times of the loaded model, or of an adapter.
    409 while another probe runs, 503 without the model or the adapter."""
    server = server_of(request)
    loaded = server.serving.loaded
    if loaded is None:
        raise errors.ServiceUnavailable("no model is loaded; ask again when the server is ready")
    if body.adapter and body.adapter not in loaded.engine.adapters:
        raise errors.ServiceUnavailable(
            f"the adapter {body.adapter[:200]} is not loaded; ask again when it is"
        )
    if server.probing.locked():
        raise errors.Conflict(
            "another load probe runs on this server; ask again when it is over",
            code="probe_running",
        )
    async with server.probing:
        return await Probe(
            loaded.engine, loaded.codec.vocabulary_size, body, random.Random(str(uuid4()))
        ).run()


@dataclass
class Probe:
    """One load: clients in a closed loop, and a watch over everybody else's."""

    engine: Engine
    vocabulary: int
    asked: ProbeBody
    chance: random.Random
    clock: Callable[[], float] = time.perf_counter
    first: list[float] = field(default_factory=list)
    """Seconds to the first token,"""
    gaps: list[float] = field(default_factory=list)
    """and between two tokens."""
    tokens: int = 0
    unanswered: int = 0
    """Requests that wait for their first token."""
    open: int = 0
    looks: int = 0
    busy_looks: int = 0

    async def run(self) -> LoadFigures:
        """Load the engine. A refused request ends the probe with its refusal."""
        began = self.clock()
        clients = [
            asyncio.create_task(self._client(began + self.asked.seconds))
            for _ in range(self.asked.concurrency)
        ]
        watch = asyncio.create_task(self._until_clients_queue())
        try:
            async with asyncio.timeout(self.asked.seconds + LATE_SECONDS):
                done, _ = await asyncio.wait([*clients, watch], return_when=asyncio.FIRST_COMPLETED)
                dropped = watch in done
                if not dropped:
                    await asyncio.gather(*clients)
        except TimeoutError:
            dropped = True
        finally:
            for task in (*clients, watch):
                task.cancel()
            await asyncio.gather(*clients, watch, return_exceptions=True)
        seconds = self.clock() - began
        return LoadFigures(
            answers=len(self.first),
            tokens_per_second=self.tokens / seconds,
            first_token_seconds=_middle_and_tail(self.first),
            inter_token_seconds=_middle_and_tail(self.gaps),
            memory_bytes=self.engine.stats().gpu_memory_bytes or server_bytes(),
            busy=self.busy_looks / max(1, self.looks),
            dropped=dropped,
        )

    async def _client(self, until: float) -> None:
        while self.clock() < until:
            await self._answer()

    async def _answer(self) -> None:
        embeds = self.engine.embedding is not None
        # Models for embeddings are made for short texts, and the operator knows nothing of lengths.
        most = self.engine.max_model_length if embeds else self.asked.prompt_tokens
        prompt = tuple(
            self.chance.randrange(self.vocabulary)
            for _ in range(min(self.asked.prompt_tokens, most))
        )
        sampling = Sampling(self.asked.max_tokens, temperature=0, ignore_eos=True)
        sent = before = self.clock()
        stream = self.engine.generate(
            GenerationRequest(
                f"probe-{uuid4()}",
                prompt,
                sampling,
                adapter=self.asked.adapter,
                priority=PRIORITY,
                tenant="load-probe",
                embeds=embeds,
            )
        )
        self.open += 1
        self.unanswered += 1
        answered = False
        try:
            async with aclosing(stream):
                while events := await stream.take():
                    now = self.clock()
                    count = sum(event.token_id is not None for event in events)
                    if embeds and events[-1].text:
                        count = len(prompt)
                    if count and answered:
                        self.gaps += [(now - before) / count] * count
                    elif count:
                        answered = True
                        self.unanswered -= 1
                        self.first.append(now - sent)
                    before = now
                    self.tokens += count
        finally:
            self.open -= 1
            self.unanswered -= not answered

    async def _until_clients_queue(self) -> None:
        queued = 0
        while queued < QUEUED_LOOKS:
            await asyncio.sleep(LOOK_SECONDS)
            stats = self.engine.stats()
            self.looks += 1
            self.busy_looks += stats.running + stats.waiting > self.open
            queued = queued + 1 if stats.waiting > self.unanswered else 0


def _middle_and_tail(samples: list[float]) -> tuple[float, float] | None:
    """Median and 95th percentile; None of fewer than two samples."""
    if len(samples) < 2:
        return None
    cuts = quantiles(samples, n=20, method="inclusive")
    return cuts[9], cuts[18]
