"""`GET /v1/models`: the one model that is served."""

import time
from typing import Any

from fastapi import APIRouter, Request

from llm_runtime.api.body import check_model
from llm_runtime.api.guard import SECURITY, KeyedRoute
from llm_runtime.api.services import Services, services_of

router = APIRouter(route_class=KeyedRoute, dependencies=SECURITY, tags=["OpenAI"])


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """All models of this endpoint."""
    return {"object": "list", "data": [_model(services_of(request))]}


@router.get("/v1/models/{model_id:path}", summary="Describe a model")
async def get_model(request: Request, model_id: str) -> dict[str, Any]:
    """One model."""
    services = services_of(request)
    check_model(model_id, services.config.model.name)
    return _model(services)


def _model(services: Services) -> dict[str, Any]:
    created = int(time.time() - services.uptime_seconds)
    return {"id": services.config.model.name, "object": "model", "created": created, "owned_by": "llm-operator"}
