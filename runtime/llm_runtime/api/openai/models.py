"""`GET /v1/models`: the one model that is served, and its adapters."""

import time
from typing import Any

from fastapi import APIRouter, Request

from llm_runtime.api.body import BASE, check_model
from llm_runtime.api.documents import OPENAI_ERRORS
from llm_runtime.api.guard import SECURITY, KeyedRoute
from llm_runtime.api.server import Server, server_of
from llm_runtime.api.serving import State
from llm_runtime.auth.callers import may_use

router = APIRouter(
    route_class=KeyedRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List what the caller may use: the model, and the adapters that the key allows."""
    server = server_of(request)
    caller = request.state.caller
    if server.serving.state is State.UNLOADED:
        return {"object": "list", "data": []}
    named = [_model(server, name) for name in _adapters(server) if may_use(caller, name)]
    bare = [_bare(server)] if may_use(caller, server.default_adapter) else []
    base = [_model(server)] if server.default_adapter else []
    return {"object": "list", "data": [*bare, *base, *named]}


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(request: Request, model_id: str) -> dict[str, Any]:
    """One model."""
    server = server_of(request)
    served = server.config.model.name
    caller = request.state.caller
    if model_id == served and may_use(caller, server.default_adapter):
        return _bare(server)
    usable = [name for name in _adapters(server) if may_use(caller, name)]
    return _model(server, check_model(model_id, served, usable, server.default_adapter))


def _adapters(server: Server) -> tuple[str, ...]:
    loaded = server.serving.loaded
    return loaded.engine.adapters if loaded else ()


def _bare(server: Server) -> dict[str, Any]:
    """What answers requests for the model's own name: the model, or the default adapter."""
    if not (default := server.default_adapter):
        return _model(server)
    return {**_model(server, default), "id": server.config.model.name, "adapter": default}


def _model(server: Server, adapter: str = "") -> dict[str, Any]:
    base = server.config.model.name
    created = int(time.time() - server.uptime_seconds)
    described: dict[str, Any] = {
        "id": base,
        "object": "model",
        "created": created,
        "owned_by": "llm-operator",
    }
    version = server.serving.version
    if adapter:
        version = server.adapters.version(adapter) or "" if server.adapters else ""
        # As in vLLM's server, `parent` is the base model of an adapter.
        described |= {"id": f"{base}:{adapter}", "parent": base}
    elif server.default_adapter:
        described["id"] = f"{base}:{BASE}"
    loaded = server.serving.loaded
    if loaded:
        # As in vLLM's server: tokens of prompt and answer together.
        described["max_model_len"] = loaded.engine.max_model_length
        if embedding := loaded.engine.embedding:
            described |= {"task": "embed", "dimensions": embedding.dimensions}
    return {**described, **({"version": version} if version else {})}
