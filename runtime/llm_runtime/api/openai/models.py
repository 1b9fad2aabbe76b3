"""`GET /v1/models`: the one model that is served, and its adapters."""

import time
from typing import Any

from fastapi import APIRouter, Request

from llm_runtime.api.body import check_model
from llm_runtime.api.documents import OPENAI_ERRORS
from llm_runtime.api.guard import SECURITY, KeyedRoute
from llm_runtime.api.services import Services, State, services_of
from llm_runtime.auth import check_adapter, may_use

router = APIRouter(route_class=KeyedRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS)


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """What the caller may use: the model, and of its adapters those that the key is for."""
    services, caller = services_of(request), request.state.caller
    served = ["", *_adapters(services)] if services.state is not State.UNLOADED else []
    return {"object": "list", "data": [_model(services, name) for name in served if may_use(caller, name)]}


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(request: Request, model_id: str) -> dict[str, Any]:
    """One model."""
    services = services_of(request)
    adapter = check_model(model_id, services.config.model.name, _adapters(services))
    check_adapter(request.state.caller, adapter)
    return _model(services, adapter)


def _adapters(services: Services) -> tuple[str, ...]:
    return services.loaded.engine.adapters if services.loaded else ()


def _model(services: Services, adapter: str = "") -> dict[str, Any]:
    base, created = services.config.model.name, int(time.time() - services.uptime_seconds)
    described = {"id": base, "object": "model", "created": created, "owned_by": "llm-operator"}
    # vLLM's server names the base model of an adapter so.
    if not adapter:
        return described
    version = services.adapters.version(adapter) if services.adapters else None
    return {**described, "id": f"{base}:{adapter}", "parent": base, **({"version": version} if version else {})}
