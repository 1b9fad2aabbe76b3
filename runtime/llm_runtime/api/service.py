"""Probes, health and metrics: open to everybody, and never behind a key."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from llm_runtime.api.services import Services, State, services_of
from llm_runtime.contract import LIVE_PATH, METRICS_PATH, READY_PATH

router = APIRouter(tags=["service"])

RETRY_AFTER = {"Retry-After": "2"}


@router.get(LIVE_PATH, summary="Liveness")
async def live(request: Request) -> Response:
    """200 unless only a restart helps; loading is life."""
    if services_of(request).alive:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "dead"}, 503, headers=RETRY_AFTER)


@router.get(READY_PATH, summary="Readiness")
async def ready(request: Request) -> Response:
    """200 while new requests are welcome: the model is loaded and warm, and the server is not shutting down.

    Where the first request loads the model, the server is ready for it before, and not while it loads.
    """
    services = services_of(request)
    if reason := services.unready_reason:
        return JSONResponse({"status": "not ready", "reason": reason}, 503, headers=RETRY_AFTER)
    if services.loaded is None:
        return JSONResponse({"status": "ready", "reason": "The first request loads the model."})
    return JSONResponse({"status": "ready"})


@router.get("/health", summary="Health for people")
async def health(request: Request) -> Response:
    """What stands where. The status code is liveness's, so that a slow load is not taken for a fault."""
    services = services_of(request)
    return JSONResponse(_health(services), 200 if services.alive else 503)


@router.get(METRICS_PATH, summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """In Prometheus's text format."""
    return Response(services_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _health(services: Services) -> dict[str, Any]:
    healthy = services.state is State.READY and services.alive
    return {
        "status": "healthy" if healthy else "unhealthy" if not services.alive else services.state,
        "api_status": "draining" if services.state is State.DRAINING else "running",
        "model_status": _model_status(services),
        "gpu_status": _gpu_status(services),
        "engine": services.loaded.engine.stats().kind if services.loaded else None,
        "model_loaded": services.loaded is not None,
        "model_name": services.config.model.name,
        "timestamp": datetime.now(UTC).isoformat(),
        "uptime_seconds": round(services.uptime_seconds, 3),
    }


def _model_status(services: Services) -> str:
    if services.state is State.FAILED:
        return "failed"
    if services.loaded:
        return "loaded"
    return "unloaded" if services.state in (State.IDLE, State.UNLOADED) else "loading"


def _gpu_status(services: Services) -> str:
    if services.loaded is None:
        return "unknown"
    return "available" if services.loaded.on_gpu else "unavailable"
