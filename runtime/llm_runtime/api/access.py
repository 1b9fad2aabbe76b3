"""Who may manage this server, and the parts that management needs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import HTTPConnection

from llm_runtime import errors
from llm_runtime.api.serving import Start
from llm_runtime.auth.callers import Keys, Tiers, authenticate, offered
from llm_runtime.auth.keys import DatabaseKeys
from llm_runtime.contract import RuntimeConfig
from llm_runtime.fetching.progress import Progress
from llm_runtime.request import Caller

MANAGED_ELSEWHERE = (
    "There is no management here: the operator manages this server's model and keys."
)
ADMIN_HINT = (
    "Management needs an admin key: set ADMIN_API_KEY, or `llm-runtime keys create NAME --admin`."
)
KEY_HINT = "Make a key with `llm-runtime keys create NAME`, or set API_KEY."

FetchModel = Callable[[RuntimeConfig, Progress, str], Awaitable[Path]]
"""Bring a model to a folder, and tell how far that is;
with a token of the hub, or "" for the environment's."""


@dataclass(frozen=True, slots=True)
class Management:
    """What a server that no operator manages lets its administrators do."""

    keys: Keys
    """Among them the administrators'; also where everybody may generate without a key."""
    issuer: DatabaseKeys | None
    """The store of new keys; None without a database."""
    fetch: FetchModel
    start: Start
    tracking_uri: str | None = None
    """The MLflow server, where the configuration names none."""


def administrator(
    management: Management | None, tiers: Tiers, connection: HTTPConnection
) -> Caller:
    """The caller, who may manage models and keys. Raises `errors.Forbidden` for everybody else."""
    if management is None:
        raise errors.NotFound(MANAGED_ELSEWHERE, code="management_off")
    try:
        record = authenticate(management.keys, offered(connection), datetime.now(UTC))
    except errors.Unauthorized:
        if any(record.admin for record in management.keys.records()):
            raise
        raise errors.Forbidden(
            f"No admin key is configured. {ADMIN_HINT}", code="admin_key_required"
        ) from None
    if not record.admin:
        raise errors.Forbidden(
            f"The API key {record.id} may not manage. {ADMIN_HINT}", code="admin_key_required"
        )
    return tiers.caller(record)
