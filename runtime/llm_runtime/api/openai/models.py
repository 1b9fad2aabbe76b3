"""`GET /v1/models`: the one model that is served, and its adapters."""

import time
from typing import Any

from fastapi import APIRouter, Request

from llm_runtime.api.body import BASE, check_model
from llm_runtime.api.documents import OPENAI_ERRORS
from llm_runtime.api.guard import SECURITY, KeyedRoute
from llm_runtime.api.services import Services, State, services_of
from llm_runtime.auth import may_use

router = APIRouter(route_class=KeyedRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS)


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List what the caller may use: the model, and the adapters that the key allows."""
    services = services_of(request)
    caller = request.state.caller
    if services.state is State.UNLOADED:
        return {"object": "list", "data": []}
    named = [_model(services, name) for name in _adapters(services) if may_use(caller, name)]
    bare = [_bare(services)] if may_use(caller, services.default_adapter) else []
    base = [_model(services)] if services.default_adapter else []
    return {"object": "list", "data": [*bare, *base, *named]}


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(request: Request, model_id: str) -> dict[str, Any]:
    """One model."""
    services = services_of(request)
    served = services.config.model.name
    usable = [name for name in _adapters(services) if may_use(request.state.caller, name)]
    adapter = check_model(model_id, served, usable, services.default_adapter)
    return _bare(services) if model_id == served else _model(services, adapter)


def _adapters(services: Services) -> tuple[str, ...]:
    return services.loaded.engine.adapters if services.loaded else ()


def _bare(services: Services) -> dict[str, Any]:
    """What answers requests for the model's own name: the model, or the default adapter."""
    if not (default := services.default_adapter):
        return _model(services)
    return {**_model(services, default), "id": services.config.model.name, "adapter": default}


def _model(services: Services, adapter: str = "") -> dict[str, Any]:
    base = services.config.model.name
    created = int(time.time() - services.uptime_seconds)
    described = {"id": base, "object": "model", "created": created, "owned_by": "llm-operator"}
    version = services.version
    if adapter:
        version = services.adapters.version(adapter) or "" if services.adapters else ""
        # As in vLLM's server, `parent` is the base model of an adapter.
        described |= {"id": f"{base}:{adapter}", "parent": base}
    elif services.default_adapter:
        described["id"] = f"{base}:{BASE}"
    return {**described, **({"version": version} if version else {})}
