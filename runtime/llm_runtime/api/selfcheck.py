"""Readiness from a real generation: while nobody asks the engine for anything, this does,
for one token or one embedding."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from llm_runtime.errors import Refusal
from llm_runtime.request import Engine, FinishReason, GenerationRequest, Sampling, TextCodec

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""Seconds between two checks of an idle engine."""
AGAIN_SECONDS = 2.0
"""After a failed one."""


class Model(Protocol):
    """What is asked."""

    @property
    def engine(self) -> Engine: ...
    @property
    def codec(self) -> TextCodec: ...


class SelfCheck:
    """`fault` says what the last check met; None while all is well.

    No clock is needed for an engine that takes the request and never answers. The request stays
    open, and a silent open request is noticed like any other (`EngineStats.quiet_seconds`).
    """

    def __init__(
        self, model: Callable[[], Model | None], idle_seconds: float = IDLE_SECONDS
    ) -> None:
        """`model` gives what should answer now, None while nothing should."""
        self.fault: str | None = None
        self._model = model
        self._idle_seconds = idle_seconds

    async def run(self) -> None:
        """For ever. A busy engine proves itself by its work and is left alone."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS if self.fault else self._idle_seconds)
            model = self._model()
            stats = model.engine.stats() if model else None
            if (
                model is None
                or stats is None
                or not stats.alive
                or (stats.running + stats.waiting and not self.fault)
            ):
                continue
            await self._check(model)

    async def _check(self, model: Model) -> None:
        fault = None
        try:
            request = GenerationRequest(
                "self-check",
                tuple(model.codec.encode("a")),
                Sampling(max_tokens=1),
                embeds=model.engine.embedding is not None,
            )
            async for event in model.engine.generate(request):
                if event.finish_reason is FinishReason.ERROR:
                    fault = f"The engine can't generate: {event.error}."
        except Refusal:
            return  # Too busy, or leaving.
        except Exception as error:
            log.exception("The self-check failed")
            fault = f"The engine can't generate: {type(error).__name__}."
        if fault != self.fault:
            log.log(
                logging.WARNING if fault else logging.INFO,
                "Self-check: %s",
                fault or "the engine generates again",
            )
        self.fault = fault
