"""The parts of the HTTP process, and the one place where they are put together and metrics are
wired."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection

from llm_runtime.adapters import Adapters
from llm_runtime.api.access import Management
from llm_runtime.api.serving import Serving, WarmModel, version_of
from llm_runtime.api.throttle import Throttle
from llm_runtime.auth.callers import NO_ROLES, Callers, Keys, Tiers
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.cache.idempotency import IdempotencyKeys
from llm_runtime.common.background import Runs
from llm_runtime.contract import RuntimeConfig
from llm_runtime.db.database import Database
from llm_runtime.filters import Filters
from llm_runtime.limits import Limiter
from llm_runtime.machine.memory import server_bytes
from llm_runtime.metrics import Metrics, Sources
from llm_runtime.pipeline import Pipeline
from llm_runtime.sessions import Responses, Sessions
from llm_runtime.shadow import Copier, Orders, Tally
from llm_runtime.tracing import Tracing
from llm_runtime.usage import LoggedUsage, UsageLog


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of one server; a route takes those that it needs from `server_of`.
    What changes is inside a part."""

    serving: Serving
    callers: Callers
    metrics: Metrics
    management: Management | None
    """None where an operator manages this server."""
    database: Database | None
    limiter: Limiter | None
    cache: CompletionCache | None
    sessions: Sessions | None
    responses: Responses | None
    adapters: Adapters | None
    """Adapters that come and go; None where only the configuration names some."""
    tracing: Tracing | None
    copier: Copier | None
    """None where no operator could have requests copied."""
    parts: Sequence[AbstractAsyncContextManager[Any]]
    """Entered before the model is loaded, in this order, and left after its engine has ended."""
    runs: Runs
    throttle: Throttle = field(default_factory=Throttle)
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a load probe runs."""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def config(self) -> RuntimeConfig:
        """Configuration of the model that serves."""
        return self.serving.config

    @property
    def default_adapter(self) -> str:
        """The adapter that answers for the bare name of the model; "" for none."""
        return (self.adapters.default if self.adapters else "") or self.config.default_adapter or ""

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self.started_at


def make_server(
    config: RuntimeConfig,
    load: Callable[[], Awaitable[WarmModel]],
    keys: Keys | None = None,
    *,
    metrics: Metrics | None = None,
    usage: UsageLog | None = None,
    management: Management | None = None,
    database: Database | None = None,
    limiter: Limiter | None = None,
    cache: CompletionCache | None = None,
    sessions: Sessions | None = None,
    responses: Responses | None = None,
    adapters: Adapters | None = None,
    tracing: Tracing | None = None,
    shadow: Orders | None = None,
    parts: Sequence[AbstractAsyncContextManager[Any]] = (),
) -> Server:
    """A server around the model that `load` brings: see `Serving`.
    Without `keys` every caller is anonymous.

    Raises `errors.ConfigInvalid` for a filter's pattern: before the model is loaded, not after.
    """
    Filters(config.server.filters)
    usage = LoggedUsage() if usage is None else usage
    usage = tracing.follow(usage) if tracing else usage
    metrics = metrics or Metrics()
    idempotency = IdempotencyKeys()

    def pipeline(config: RuntimeConfig, loaded: WarmModel) -> Pipeline:
        return Pipeline(
            config,
            loaded.engine,
            loaded.codec,
            metrics,
            usage,
            limiter=limiter,
            cache=cache,
            idempotency=idempotency,
            identity=adapters.identity if adapters else str,
            version=version_of(config, loaded),
        )

    serving = Serving(config, load, pipeline, adapters)
    metrics.watch(
        Sources(
            engine=lambda: serving.loaded.engine.stats() if serving.loaded else None,
            database_away=(lambda: database.away) if database else None,
            adapters=adapters.gauges if adapters else None,
            failed_adapters=adapters.failures if adapters else None,
            cache_entries=lambda: cache.entries if cache else 0,
            memory_bytes=server_bytes,
        )
    )
    copier = None
    if shadow:
        tally = Tally()
        metrics.registry.register(tally)
        copier = Copier(shadow, tally, limiter.most_tokens if limiter else lambda caller: None)
    runs = Runs()
    source = keys or (management.keys if management else None)
    tiers = Tiers(config.tiers, config.default_tier, lambda: source.roles if source else NO_ROLES)
    return Server(
        serving=serving,
        callers=Callers(keys, tiers, required=config.authentication != "Disabled"),
        metrics=metrics,
        management=management,
        database=database,
        limiter=limiter,
        cache=cache,
        sessions=sessions,
        responses=responses,
        adapters=adapters,
        tracing=tracing,
        copier=copier,
        runs=runs,
        # Left in the reverse order: runs still write what became of them.
        parts=(*parts, runs, *([copier] if copier else [])),
    )


def server_of(connection: HTTPConnection) -> Server:
    """The server whose application handles this request."""
    server: Server = connection.app.state.server
    return server
