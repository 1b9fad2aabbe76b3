"""Management: `POST /generate_apikey`, `/load_model`,
`/unload_model` for administrators, `GET /v1/key` for everybody.

Only a server that no operator manages lets itself be managed.
"""

import asyncio
import logging
import re
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import func, select

from llm_runtime import errors
from llm_runtime.api.access import Management, administrator
from llm_runtime.api.body import Body, Text
from llm_runtime.api.documents import OWN_ERRORS, example
from llm_runtime.api.guard import SECURITY, BodyRoute, KeyedRoute
from llm_runtime.api.server import Server, server_of
from llm_runtime.api.serving import Serving
from llm_runtime.auth.store import NewKey
from llm_runtime.common.aside import in_thread
from llm_runtime.contract import MlflowVersion, ModelConfig, RuntimeConfig
from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import usage_daily
from llm_runtime.fetching.hub import Hub
from llm_runtime.fetching.registry import MlflowRegistry
from llm_runtime.limits import Limiter
from llm_runtime.request import Caller

log = logging.getLogger(__name__)

MAX_DAYS = 36_500
URI = re.compile(r"(models|runs|mlflow-artifacts|s3|gs|abfss|file|hf):/\S+")
OF_THE_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?")
"""MLflow's names hold no slash."""
STATUS: dict[str, type[errors.Refusal]] = {
    "ModelNotFound": errors.NotFound,
    "RegistryUnreachable": errors.ServiceUnavailable,
    "DiskFull": errors.ServiceUnavailable,
    "OutOfMemory": errors.ServiceUnavailable,
}
"""HTTP status of faults of a load that are not the request's fault."""


class AdminRoute(BodyRoute):
    """A route for administrators."""

    async def admit(self, request: Request) -> None:
        server = server_of(request)
        request.state.caller = administrator(server.management, server.callers.tiers, request)


router = APIRouter(dependencies=SECURITY, tags=["management"], responses=OWN_ERRORS)
admin = APIRouter(route_class=AdminRoute)
own = APIRouter(route_class=KeyedRoute)

HubToken = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,500}$")]
Name = Annotated[Text, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class NewKeyBody(Body):
    """Whom the key is for."""

    model_config = example(username="myuser")

    username: Name
    role: Annotated[str, Field(max_length=63)] | None = None
    expires_in_days: Annotated[float, Field(gt=0, le=MAX_DAYS)] | None = None


class LoadBody(Body):
    """The model to serve: a registered model, a folder of this machine, a model of the hub,
    or any other URI."""

    model_config = example(model_name="support-bot", device="auto")

    model_name: Annotated[
        Text, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f'\"]+$")
    ]
    model_version: Annotated[str, Field(pattern=r"^[0-9]{1,9}$")] | None = None
    path: Annotated[Text, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]+$")] | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    hf_token: Annotated[HubToken | None, Field(repr=False)] = None
    """For this download only: neither logged nor kept."""


@admin.post("/generate_apikey", summary="Make an API key")
async def generate_apikey(request: Request, body: NewKeyBody) -> dict[str, Any]:
    """A new key. Only this answer shows it: what is kept is a digest."""
    server = server_of(request)
    tiers = server.callers.tiers
    issuer = _management(server).issuer
    if issuer is None:
        raise errors.Forbidden(
            "Keys need a database: set DATABASE_URL to something else than `none`."
        )
    if body.role and body.role not in tiers.known():
        known = ", ".join(name for name in tiers.known() if name)
        raise errors.InvalidRequest(
            f"There is no role {body.role[:63]!r}; there are {known}.", param="role"
        )
    expires_at = (
        datetime.now(UTC) + timedelta(days=body.expires_in_days) if body.expires_in_days else None
    )
    try:
        issued = await issuer.store.create(
            NewKey(body.username, body.username, body.role or "", expires_at=expires_at)
        )
        await issuer.poll()  # So that the key works with the next request already, here at least.
    except DatabaseAway as away:
        raise errors.ServiceUnavailable("The database does not answer; try again later.") from away
    return {
        "api_key": issued.key,
        "id": issued.id,
        "username": body.username,
        "role": tiers.find(body.role or "").name,
        "expires_at": expires_at.isoformat() if expires_at else None,
    }


@admin.post("/load_model", summary="Load a model")
async def load_model(request: Request, body: LoadBody) -> dict[str, Any]:
    """Serve another model. The answer comes when it serves;
    until then, or if it fails, the old one serves on.

    One at a time: meanwhile another gets 409, and `GET /status` says how far this one is.
    """
    server = server_of(request)
    serving = server.serving
    management = _management(server)
    config = _with_device(serving, body.device)
    with serving.arriving(body.model_name) as arrival:
        try:
            config = await _with_model(config, body, server)
            arrival.name = config.model.name
            log.info("Model %s is asked for", config.model.name)
            folder = await management.fetch(config, arrival, body.hf_token or "")
            arrival.step = "loading"
            await serving.load(config, folder, management.start)
        except errors.Fatal as fatal:
            log.warning("Model %s could not be loaded: %s", body.model_name, fatal)
            refusal = STATUS.get(fatal.reason, errors.InvalidRequest)
            raise refusal(f"The model could not be loaded: {fatal}", code=fatal.reason) from fatal
    return {
        "message": f"Model {config.model.name} is loaded.",
        "model_name": config.model.name,
        "model_version": serving.version or None,
        "device": _device(serving),
    }


@admin.post("/unload_model", summary="Unload the model")
async def unload_model(request: Request) -> dict[str, Any]:
    """Free the model's memory. What runs may end first;
    new requests get 503 until a model is loaded again."""
    serving = server_of(request).serving
    if serving.loaded is None:
        return {"message": "No model is loaded."}
    name = serving.config.model.name
    await serving.unload()
    return {"message": f"Model {name} is unloaded."}


@own.get("/v1/key", summary="Describe the own key")
async def own_key(request: Request) -> dict[str, Any]:
    """Whose key this is, what it may use, and what it has used.
    Tokens are those of prompts and answers together."""
    server = server_of(request)
    caller = request.state.caller
    used = (
        await _usage(server.database, caller.id, datetime.now(UTC).date())
        if server.database
        else _Usage()
    )
    limit = caller.tier.tokens_per_month
    left = max(0, limit - used.month_tokens) if limit and used.month_tokens is not None else None
    return {
        "data": {
            "id": caller.id,
            "label": caller.name,
            "owner": caller.owner,
            "tier": caller.tier.name,
            "is_admin": caller.admin,
            "adapters": list(caller.adapters),
            "limit": limit,
            "limit_remaining": left,
            "limit_reset": "monthly" if limit else None,
            "usage_daily": used.today_tokens,
            "usage_monthly": used.month_tokens,
            "requests_daily": used.today_requests,
            "requests_monthly": used.month_requests,
            "limits": caller.tier.model_dump(exclude={"name"}),
            "standing": await _standing(server.limiter, caller),
        }
    }


router.include_router(admin)
router.include_router(own)


def _management(server: Server) -> Management:
    assert server.management  # `AdminRoute` lets nobody in without.
    return server.management


def _with_device(serving: Serving, device: str | None) -> RuntimeConfig:
    """An engine stays where it is; only without a model there is a choice."""
    if device in (None, "auto"):
        return serving.config
    if serving.loaded and device != _device(serving):
        message = (
            f"The engine computes on {_device(serving)}; for {device} POST /unload_model first,"
            " then load again."
        )
        raise errors.InvalidRequest(message, param="device")
    engine = serving.config.engine.model_copy(update={"device": device})
    return serving.config.model_copy(update={"engine": engine})


def _device(serving: Serving) -> str:
    return "cuda" if serving.loaded and serving.loaded.on_gpu else "cpu"


async def _with_model(config: RuntimeConfig, body: LoadBody, server: Server) -> RuntimeConfig:
    """The configuration with the model that is asked for.
    Adapters and a chat template belong to the model before."""
    for known in (server.config, server.serving.configured):
        if body.model_name == known.model.name and not body.path and not body.model_version:
            _check_token(body, known.model.uri)
            return config.model_copy(update={"model": known.model, "adapters": known.adapters})
    folder = body.path or (
        body.model_name if await asyncio.to_thread(_is_folder, body.model_name) else None
    )
    uri = None if folder else _uri(body)
    _check_token(body, uri)
    source: dict[str, Any]
    if folder:
        source = {
            "name": body.model_name if body.path else PurePath(folder).name or folder,
            "path": folder,
        }
    elif uri:
        source = {"name": _name(uri), "uri": uri, "tracking_uri": _tracking_uri(server)}
    else:
        source = {"name": body.model_name, "mlflow": await _version(server, body)}
    model = ModelConfig(system_prompt=config.model.system_prompt, **source)
    return config.model_copy(update={"model": model, "adapters": (), "default_adapter": None})


def _check_token(body: LoadBody, uri: str | None) -> None:
    if body.hf_token and not (uri or "").startswith("hf:"):
        message = (
            f"hf_token is for models of the hub, and {body.model_name!r} is none: leave it out."
        )
        raise errors.InvalidRequest(message, param="hf_token")


def _is_folder(name: str) -> bool:
    return Path(name).is_dir()


def _uri(body: LoadBody) -> str | None:
    """What `model_name` says as a URI; None where it is a registered model's name."""
    name = body.model_name
    uri = name if URI.fullmatch(name) else f"hf://{name}" if OF_THE_HUB.fullmatch(name) else None
    if uri and body.model_version:
        message = (
            "model_version is for a registered model by its bare name; write org/name@revision or"
            " models:/name/3."
        )
        raise errors.InvalidRequest(message, param="model_version")
    return uri


def _name(uri: str) -> str:
    """The name under which `uri` is served. Raises errors.ConfigInvalid."""
    if uri.startswith("hf:"):
        return Hub.repository(uri)
    registered = re.match(r"models:/+([^/@]+)[/@]", uri)
    return registered[1] if registered else uri.rstrip("/").rpartition("/")[2]


def _tracking_uri(server: Server) -> str | None:
    """Address of the MLflow server that is asked."""
    first = server.serving.configured.model
    configured = first.mlflow.tracking_uri if first.mlflow else first.tracking_uri
    return configured or _management(server).tracking_uri


async def _version(server: Server, body: LoadBody) -> MlflowVersion:
    tracking_uri = _tracking_uri(server)
    if not tracking_uri:
        message = (
            f"{body.model_name!r} is no folder, and no MLflow server is known: send `path`, or set"
            " MLFLOW_TRACKING_URI."
        )
        raise errors.InvalidRequest(message, param="model_name")
    newest = in_thread(lambda: MlflowRegistry(tracking_uri).newest(body.model_name))
    return MlflowVersion(
        tracking_uri=tracking_uri,
        name=body.model_name,
        version=body.model_version or await newest(),
    )


@dataclass(slots=True)
class _Usage:
    """What a key has used; None where that is not known."""

    today_tokens: int | None = None
    today_requests: int | None = None
    month_tokens: int | None = None
    month_requests: int | None = None


async def _usage(database: Database, key_id: str, today: date) -> _Usage:
    """Sums of the UTC day and month; unknown while the database is away."""
    used = _Usage()
    table = usage_daily.c
    tokens = table.prompt_tokens + table.completion_tokens
    days = select(table.day, func.sum(tokens), func.sum(table.requests))
    days = days.where(table.key_id == key_id, table.day >= today.replace(day=1)).group_by(table.day)
    try:
        async with database.read() as connection:
            rows = [
                (day, int(spent), int(requests))
                for day, spent, requests in await connection.execute(days)
            ]
    except DatabaseAway:
        return used
    used.month_tokens = sum(row[1] for row in rows)
    used.month_requests = sum(row[2] for row in rows)
    used.today_tokens = sum(row[1] for row in rows if row[0] == today)
    used.today_requests = sum(row[2] for row in rows if row[0] == today)
    return used


async def _standing(limiter: Limiter | None, caller: Caller) -> dict[str, Any] | None:
    """What is left of each limit, also after requests to other replicas."""
    if limiter is None:
        return None
    found = asdict(await limiter.ask_standing(caller))
    return {name: value for name, value in found.items() if value is not None}
