"""Probes, health, status and metrics: open to everybody, and never behind a key."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from llm_runtime import errors
from llm_runtime.api.documents import OwnErrorAnswer
from llm_runtime.api.services import Services, State, services_of
from llm_runtime.auth import may_use
from llm_runtime.contract import LIVE_PATH, METRICS_PATH, READY_PATH
from llm_runtime.db.database import Database
from llm_runtime.limits import Limiter

router = APIRouter(tags=["service"])

RETRY_AFTER = {"Retry-After": "2"}
FIRST_REQUEST = "The first request loads the model."


UNREADY: dict[int | str, dict[str, Any]] = {
    405: {"model": OwnErrorAnswer, "description": "Another method."},
    503: {"description": "Not now; the body says why"},
}


@router.get("/", summary="What is here")
async def root(request: Request) -> dict[str, Any]:
    """Where to go on: for people who open the address, and for clients whose base URL lacks `/v1`."""
    services = services_of(request)
    return {
        "service": "llm-runtime",
        "model": services.config.model.name,
        "ready": services.unready_reason is None,
        "openai": "/v1",
        "docs": "/docs",
        "health": "/health",
    }


@router.get(LIVE_PATH, summary="Liveness", responses=UNREADY)
async def live(request: Request) -> Response:
    """200 unless only a restart helps; loading is life."""
    if services_of(request).alive:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "dead"}, 503, headers=RETRY_AFTER)


@router.get(READY_PATH, summary="Readiness", responses=UNREADY)
async def ready(request: Request) -> Response:
    """200 while new requests are welcome: the model is loaded and warm, and the server is not shutting down.

    Where the first request loads the model, the server is ready for it before, and not while it loads.
    """
    services = services_of(request)
    if reason := services.unready_reason:
        return JSONResponse({"status": "not ready", "reason": reason}, 503, headers=RETRY_AFTER)
    if services.loaded is None:
        return JSONResponse({"status": "ready", "reason": FIRST_REQUEST})
    return JSONResponse({"status": "ready"})


@router.get("/health", summary="Health for people", responses=UNREADY)
async def health(request: Request) -> Response:
    """What stands where. The status code is liveness's, so that a slow load is not taken for a fault."""
    services = services_of(request)
    return JSONResponse(_health(services), 200 if services.alive else 503)


@router.get("/status", summary="What the engine does now")
async def status(request: Request) -> dict[str, Any]:
    """Device, engine, queue, and what the caches have spared. Adapters are told to a key that may use them."""
    return _status(services_of(request), _told(request))


@router.get("/info", summary="The model")
async def info(request: Request) -> dict[str, Any]:
    """Which model of which registered version is served.

    Addresses and paths stay inside, and adapters are told to a key that may use them.
    """
    services, told = services_of(request), _told(request)
    model, engine = services.config.model, services.loaded.engine if services.loaded else None
    version, found = model.mlflow, services.loaded.origin if services.loaded else None
    resolved = found.source if found and model.uri else "local"
    return {
        "name": version.name if version else found.name if found and model.uri else model.name,
        "version": services.version,
        "source": f"models:/{version.name}/{version.version}" if version else resolved,
        "model_name": model.name,
        "model_version": services.version,
        "adapters": [name for name in engine.adapters if told(name)] if engine else [],
        "max_model_length": engine.max_model_length if engine else None,
        "model_loaded": engine is not None,
        "chat": asdict(services.abilities) if services.abilities else None,
        "runtime_version": metadata.version("llm-operator"),
    }


@router.get(METRICS_PATH, summary="Prometheus metrics", response_class=PlainTextResponse)
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


def _told(request: Request) -> Callable[[str], bool]:
    """Which adapters the asker may know of."""
    try:
        caller = services_of(request).authenticate(request)
    except errors.Refusal:
        return lambda name: False
    return lambda name: may_use(caller, name)


def _status(services: Services, told: Callable[[str], bool]) -> dict[str, Any]:
    loaded, coming = services.loaded, services.arrival.report() if services.arrival else None
    if loaded is None:
        why = f"{_model_status(services)}: {services.unready_reason or FIRST_REQUEST}"
        return {"status": why, "model_loaded": False, "loading": coming}
    stats, device = loaded.engine.stats(), "cuda" if loaded.on_gpu else "cpu"
    return {
        "status": f"{device}: model loaded on {'GPU' if loaded.on_gpu else 'CPU'}",
        "model_loaded": True,
        "model_name": services.config.model.name,
        "device": device,
        "loading": coming,
        "load": {"seconds": round(stats.load_seconds, 3), "peak_bytes": stats.load_peak_bytes},
        "engine": {
            "kind": stats.kind,
            "alive": stats.alive,
            "steps": stats.steps,
            "batch_size": stats.batch_size,
            "kv_cache_usage_ratio": stats.kv_cache_usage_ratio,
            "gpu_memory_bytes": stats.gpu_memory_bytes,
        },
        "queue": {"running": stats.running, "waiting": stats.waiting},
        "prefix_cache": {"prompt_tokens": stats.prompt_tokens, "cached_tokens": stats.cached_prompt_tokens},
        "completion_cache": asdict(services.cache.statistics()) if services.cache else None,
        "adapters": [entry for entry in services.adapters.report() if told(entry["name"])]
        if services.adapters
        else None,
        "database": _answers(services.database),
        "shared_limits": _answers(services.limiter),
        "uptime_seconds": round(services.uptime_seconds, 3),
    }


def _answers(part: Database | Limiter | None) -> str | None:
    """Whether what lies outside answered when it was asked last; None where there is no such part."""
    return None if part is None else "away" if part.away else "answers"


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
