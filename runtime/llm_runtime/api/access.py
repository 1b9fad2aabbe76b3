"""Who may do what beyond generating: the keys that a request carries, and those who may manage."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from llm_runtime import errors
from llm_runtime.auth import Keys, authenticate
from llm_runtime.contract import RuntimeConfig
from llm_runtime.keys import DatabaseKeys
from llm_runtime.models.progress import Progress
from llm_runtime.request import Caller

if TYPE_CHECKING:
    from llm_runtime.api.services import Loaded, Services

MANAGED_ELSEWHERE = "There is no management here: the operator manages this server's model and keys."
ADMIN_HINT = "Management needs an admin key: set ADMIN_API_KEY, or `llm-runtime keys create NAME --admin`."
KEY_HINT = "Make a key with `llm-runtime keys create NAME`, or set API_KEY."

FetchModel = Callable[[RuntimeConfig, Progress, str], Awaitable[Path]]
"""Bring a model to a folder, and tell how far that is; with a token of the hub, or "" for the environment's."""


@dataclass(frozen=True, slots=True)
class Management:
    """What a server that no operator manages lets its administrators do."""

    keys: Keys
    """Among them the administrators'; also where everybody may generate without a key."""
    issuer: DatabaseKeys | None
    """Where new keys go; None without a database."""
    fetch: FetchModel
    start: "Callable[[RuntimeConfig, Path], Awaitable[Loaded]]"
    """Start an engine with it."""
    tracking_uri: str | None = None
    """The MLflow server, where the configuration names none."""


def offered(connection: HTTPConnection) -> list[str]:
    """The keys that a request carries. `Authorization: Bearer` and `X-API-Key` are the same to every endpoint."""
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    return [bearer.strip() if scheme.lower() == "bearer" else "", connection.headers.get("x-api-key", "")]


def administrator(services: "Services", connection: HTTPConnection) -> Caller:
    """The caller, who may manage models and keys. Raises `errors.Forbidden` for everybody else."""
    if services.management is None:
        raise errors.NotFound(MANAGED_ELSEWHERE, code="management_off")
    keys = services.management.keys
    try:
        record = authenticate(keys, offered(connection), datetime.now(UTC))
    except errors.Unauthorized:
        if any(record.admin for record in keys.records()):
            raise
        raise errors.Forbidden(f"No admin key is configured. {ADMIN_HINT}", code="admin_key_required") from None
    if not record.admin:
        raise errors.Forbidden(f"The API key {record.id} may not manage. {ADMIN_HINT}", code="admin_key_required")
    return services.tiers.caller(record)
