"""Puts a server together as its settings say:
where it stores its state, which keys it takes, what guards the model."""

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_runtime import errors, tracing
from llm_runtime.adapters import AdapterList, Adapters, Fetch
from llm_runtime.api.access import FetchModel, Management
from llm_runtime.api.server import Server, make_server
from llm_runtime.api.serving import Start, WarmModel
from llm_runtime.auth.callers import KeyChain, KeyRing, Keys, SingleKey
from llm_runtime.auth.keys import DatabaseKeys
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.cache.store import AnswerStore
from llm_runtime.contract import ADAPTERS_FILE, KEYS_FLAG, SHADOW_FILE, RuntimeConfig
from llm_runtime.db.database import NO_DATABASE, Database
from llm_runtime.db.migrate import UpToDate
from llm_runtime.db.retention import Retention
from llm_runtime.limits import Limiter
from llm_runtime.metrics import Metrics
from llm_runtime.sessions import Responses, Sessions
from llm_runtime.settings import Settings
from llm_runtime.shadow import Orders
from llm_runtime.usage import LoggedUsage, UsageLog
from llm_runtime.usage.writer import DatabaseUsage

Part = AbstractAsyncContextManager[Any]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where models come from. Its calls take long, and must not hold up the event loop."""

    find: Callable[[RuntimeConfig], Awaitable[Path]]
    """The folder of the configured model, fetched where it is not there."""
    fetch: FetchModel
    start: Start
    fetch_adapter: Fetch | None = None
    """Bring an adapter to a folder; None: only the configuration's adapters are served."""
    adapter_news: Callable[[], bool] = lambda: False
    """Whether it may end otherwise than before."""

    async def load(self, config: RuntimeConfig) -> WarmModel:
        return await self.start(config, await self.find(config))


def assemble(
    settings: Settings,
    models: ModelSource,
    key_file: Path | None = None,
    adapter_file: Path | None = None,
) -> Server:
    """A server, ready to be started.
    With a key file an operator manages it: only these keys are good.

    The list of adapters lies beside the key file, unless `adapter_file` says where it is.

    Raises `errors.ConfigInvalid`.
    """
    config = settings.config
    metrics = Metrics()
    storage = settings.storage
    database = None if storage.url == NO_DATABASE else Database(storage.url)
    # Entered in this order and left in the reverse one:
    # the database closes when nobody writes any more.
    parts: list[Part] = (
        [UpToDate(database), Retention(database, config.database.retention_days)]
        if database
        else []
    )

    usage: UsageLog = LoggedUsage()
    if database:
        usage = writer = DatabaseUsage(database, config.database, metrics)
        parts.append(writer)
    limiter = Limiter.configured(
        database, settings.redis_url or "", slot_timeout_seconds=config.server.slot_timeout_seconds
    )
    parts.append(limiter)
    keys, management = _access(settings, models, database, key_file, parts)
    adapters = _adapters(
        config,
        models,
        adapter_file or (key_file.parent / ADAPTERS_FILE if key_file else None),
        parts,
    )
    return make_server(
        config,
        lambda: models.load(config),
        keys,
        metrics=metrics,
        usage=usage,
        management=management,
        database=database,
        limiter=limiter,
        cache=_cache(config, database, parts),
        sessions=_sessions(config, database, parts),
        responses=_responses(config, database, parts),
        adapters=adapters,
        tracing=tracing.from_environment(),
        shadow=_orders(key_file, adapters) if key_file else None,
        parts=parts,
    )


def _orders(key_file: Path, adapters: Adapters | None) -> Orders:
    shadowed = (lambda: adapters.shadowed) if adapters else tuple
    return Orders(key_file.parent / SHADOW_FILE, _pod(), shadowed)


def _pod() -> str:
    """This pod's name, which is its host's."""
    return os.environ.get("HOSTNAME") or socket.gethostname()


def _access(
    settings: Settings,
    models: ModelSource,
    database: Database | None,
    key_file: Path | None,
    parts: list[Part],
) -> tuple[Keys | None, Management | None]:
    """The keys that requests are checked by, None where everybody may;
    and management, where no operator does it."""
    if key_file:
        # Also where nobody needs a key: the file brings the tiers.
        return KeyRing(key_file), None
    environment = [SingleKey(settings.admin_key, admin=True)] if settings.admin_key else []
    environment += [SingleKey(settings.api_key)] if settings.api_key else []
    issuer = DatabaseKeys(database, settings.storage.key_pepper) if database else None
    required = settings.config.authentication == "Required"
    if required and not environment and not issuer:
        message = (
            f"authentication is Required: pass {KEYS_FLAG}, set API_KEY or DATABASE_URL, or"
            " AUTHENTICATION=Disabled"
        )
        raise errors.ConfigInvalid(message)
    if issuer:
        parts.append(issuer)
    keys = KeyChain(*environment, *([issuer] if issuer else []))
    tracking_uri = settings.environment.mlflow_tracking_uri
    management = Management(keys, issuer, models.fetch, models.start, tracking_uri)
    return (keys if required else None), management


def _adapters(
    config: RuntimeConfig, models: ModelSource, file: Path | None, parts: list[Part]
) -> Adapters | None:
    if file is None or models.fetch_adapter is None:
        return None
    room = config.engine.max_adapters - len(config.adapters)
    adapters = Adapters(AdapterList(file), models.fetch_adapter, room, news=models.adapter_news)
    parts.append(adapters)
    return adapters


def _cache(
    config: RuntimeConfig, database: Database | None, parts: list[Part]
) -> CompletionCache | None:
    wanted = config.server.completion_cache
    if not wanted.enabled:
        return None
    # A `uri` may stand for another version at the next start, with other answers than this one.
    if not wanted.database or database is None or config.model.uri:
        return CompletionCache(wanted)
    store = AnswerStore(database, wanted.ttl_seconds)
    parts.append(store)
    return CompletionCache(wanted, store)


def _sessions(
    config: RuntimeConfig, database: Database | None, parts: list[Part]
) -> Sessions | None:
    if not config.server.sessions.enabled:
        return None
    sessions = Sessions(config.server.sessions, database)
    parts.append(sessions)
    return sessions


def _responses(
    config: RuntimeConfig, database: Database | None, parts: list[Part]
) -> Responses | None:
    if not config.server.sessions.enabled:
        return None
    responses = Responses(config.server.sessions, database)
    parts.append(responses)
    return responses
