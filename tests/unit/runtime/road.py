"""A pipeline between a scripted engine and a limiter that counts,
to see that nothing is ever left behind."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fakes import ScriptedEngine
from harness import Rows, config
from llm_runtime import errors
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.contract import CompletionCacheConfig, RuntimeConfig
from llm_runtime.generation import Choice
from llm_runtime.metrics import Metrics, Sources
from llm_runtime.pipeline import Generation, Job, Pipeline
from llm_runtime.request import Caller, Sampling

WEB = Caller("web", "default/web")


@dataclass
class CountingLimiter:
    """Lets everybody in while `places` lasts, and remembers what is reserved and what was used."""

    places: int = 100
    most: int | None = None
    refusing: bool = False
    reserved: int = 0
    used: int = 0
    requests: int = 0
    waiting: int = 0
    asked: list[int] = field(default_factory=list)
    free: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def admit(
        self, caller: Caller, tokens: int, *, requests: int = 1, counted: int = 0
    ) -> "CountingAdmission":
        if self.refusing:
            raise errors.QueueFull("The limit is reached.")
        self.waiting += 1
        try:
            async with self.free:
                await self.free.wait_for(lambda: self.places > 0)
        finally:
            self.waiting -= 1
        self.places -= 1
        self.reserved += tokens
        self.requests += requests
        self.asked += [tokens] if tokens else []
        return CountingAdmission(self, tokens)

    def most_tokens(self, caller: Caller) -> int | None:
        return self.most


@dataclass
class CountingAdmission:
    limiter: CountingLimiter
    tokens: int
    settled: bool = False

    async def reserve(self, tokens: int) -> None:
        self.limiter.reserved += tokens - self.tokens
        self.tokens = tokens
        self.limiter.asked.append(tokens)

    def settle(self, tokens: int) -> None:
        if not self.settled:
            self.settled = True
            self.limiter.places += 1
            self.limiter.reserved -= self.tokens
            self.limiter.used += tokens


class Road:
    """Everything that a request passes."""

    def __init__(
        self,
        engine: ScriptedEngine | None = None,
        limiter: CountingLimiter | None = None,
        settings: RuntimeConfig | None = None,
        cache: CompletionCache | None = None,
    ) -> None:
        self.engine = engine or ScriptedEngine()
        self.limiter = limiter or CountingLimiter()
        self.places = self.limiter.places
        self.rows = Rows()
        self.metrics = Metrics()
        self.cache = cache or CompletionCache(CompletionCacheConfig())
        self.metrics.watch(Sources(cache_entries=lambda: self.cache.entries))
        self.pipeline = self.serve(settings or config())

    def serve(self, settings: RuntimeConfig) -> Pipeline:
        return Pipeline(
            settings,
            self.engine,
            self.engine.codec,
            self.metrics,
            self.rows,
            limiter=self.limiter,
            cache=self.cache,
        )

    async def answer(self, prompt: Any = "a b", **fields: Any) -> tuple[Generation, list[Choice]]:
        async with await self.pipeline.start(job(prompt, **fields)) as generation:
            return generation, await generation.collect()

    def assert_nothing_is_held(self) -> None:
        assert self.limiter.places == self.places
        assert (self.limiter.reserved, self.limiter.waiting) == (0, 0)
        assert not self.engine.running
        assert self.cache.statistics().waiting == 0


def job(
    prompt: Any = "a b", *, max_tokens: int = 10, temperature: float = 0.0, **fields: Any
) -> Job:
    """A greedy request, unless told otherwise."""
    sampling = fields.pop("sampling", None) or Sampling(
        max_tokens, temperature, seed=fields.pop("seed", None)
    )
    prompts = fields.pop("prompts", (prompt,))
    standard = {"id": "cmpl-1", "endpoint": "/v1/completions", "request_id": "req-1", "caller": WEB}
    return Job(**{**standard, "prompts": prompts, "sampling": sampling, **fields})
