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
from llm_runtime.api.server import Server, server_of
from llm_runtime.api.serving import Serving, State, WarmModel
from llm_runtime.auth.callers import client_host, may_use, offered, tenant_address
from llm_runtime.contract import LIVE_PATH, METRICS_PATH, READY_PATH
from llm_runtime.db.database import Database
from llm_runtime.limits import Limiter
from llm_runtime.request import Engine

router = APIRouter(tags=["service"])

RETRY_AFTER = {"Retry-After": "2"}
FIRST_REQUEST = "The first request loads the model."


UNREADY: dict[int | str, dict[str, Any]] = {
    405: {"model": OwnErrorAnswer, "description": "Another method."},
    503: {"description": "Not now; the body says why"},
}


@router.get("/", summary="What is here")
async def root(request: Request) -> dict[str, Any]:
    """Where to go on: for people who open the address,
    and for clients whose base URL lacks `/v1`."""
    server = server_of(request)
    return {
        "service": "llm-runtime",
        "model": server.config.model.name,
        "ready": server.serving.unready_reason is None,
        "openai": "/v1",
        "docs": "/docs",
        "health": "/health",
    }


@router.get(LIVE_PATH, summary="Liveness", responses=UNREADY)
async def live(request: Request) -> Response:
    """200 unless only a restart helps; loading is life."""
    if server_of(request).serving.alive:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "dead"}, 503, headers=RETRY_AFTER)


@router.get(READY_PATH, summary="Readiness", responses=UNREADY)
async def ready(request: Request) -> Response:
    """200 while new requests are welcome:
    the model is loaded and warm, and the server is not shutting down.

    Where the first request loads the model, the server is ready for it before,
    and not while it loads.
    """
    serving = server_of(request).serving
    if reason := serving.unready_reason:
        return JSONResponse({"status": "not ready", "reason": reason}, 503, headers=RETRY_AFTER)
    if serving.loaded is None:
        return JSONResponse({"status": "ready", "reason": FIRST_REQUEST})
    return JSONResponse({"status": "ready"})


@router.get("/health", summary="Health for people", responses=UNREADY)
async def health(request: Request) -> Response:
    """What stands where. The status code is liveness's,
    so that a slow load is not taken for a fault."""
    server = server_of(request)
    return JSONResponse(_health(server), 200 if server.serving.alive else 503)


@router.get("/status", summary="What the engine does now")
async def status(request: Request) -> dict[str, Any]:
    """Device, engine, queue, and what the caches have spared.
    Adapters are told to a key that may use them."""
    return _status(server_of(request), await _visible_adapters(request))


@router.get("/info", summary="The model")
async def info(request: Request) -> dict[str, Any]:
    """Which model of which registered version is served.

    Addresses and paths stay inside, and adapters are told to a key that may use them.
    """
    serving = server_of(request).serving
    visible = await _visible_adapters(request)
    model = serving.config.model
    engine = serving.loaded.engine if serving.loaded else None
    version = model.mlflow
    found = serving.loaded.origin if serving.loaded else None
    resolved = found.source if found and model.uri else "local"
    return {
        "name": version.name if version else found.name if found and model.uri else model.name,
        "version": serving.version,
        "source": f"models:/{version.name}/{version.version}" if version else resolved,
        "model_name": model.name,
        "model_version": serving.version,
        "adapters": [name for name in engine.adapters if visible(name)] if engine else [],
        "max_model_length": engine.max_model_length if engine else None,
        "model_loaded": engine is not None,
        "task": _task(engine),
        "chat": asdict(serving.abilities) if serving.abilities else None,
        "embedding": _embedding(engine),
        "runtime_version": metadata.version("llm-operator"),
    }


def _task(engine: Engine | None) -> str | None:
    if engine is None:
        return None
    return "generate" if engine.embedding is None else "embed"


def _embedding(engine: Engine | None) -> dict[str, Any] | None:
    """What a client should know of the model's embeddings."""
    model = engine.embedding if engine else None
    if model is None:
        return None
    return {
        "dimensions": model.dimensions,
        "matryoshka_dimensions": list(model.matryoshka) or None,
        "normalised": model.normalised,
        "prompts": {name: prompt.text for name, prompt in model.prompts.items()},
        "default_prompt": model.default_prompt or None,
    }


@router.get(METRICS_PATH, summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """In Prometheus's text format."""
    return Response(server_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _health(server: Server) -> dict[str, Any]:
    serving = server.serving
    healthy = serving.state is State.READY and serving.alive
    return {
        "status": "healthy" if healthy else "unhealthy" if not serving.alive else serving.state,
        "api_status": "draining" if serving.state is State.DRAINING else "running",
        "model_status": _model_status(serving),
        "gpu_status": _gpu_status(serving.loaded),
        "engine": serving.loaded.engine.stats().kind if serving.loaded else None,
        "model_loaded": serving.loaded is not None,
        "model_name": server.config.model.name,
        "timestamp": datetime.now(UTC).isoformat(),
        "uptime_seconds": round(server.uptime_seconds, 3),
    }


async def _visible_adapters(request: Request) -> Callable[[str], bool]:
    """Which adapters the asker may know of. A wrong key is answered, as no key is, and as late as
    everywhere: keys are not guessed here."""
    server = server_of(request)
    try:
        caller = server.callers.identify(request)
    except errors.Refusal as refusal:
        if any(offered(request)):
            await server.throttle.refuse(tenant_address(client_host(request)), refusal)
        return lambda name: False
    return lambda name: may_use(caller, name)


def _status(server: Server, visible: Callable[[str], bool]) -> dict[str, Any]:
    serving = server.serving
    loaded = serving.loaded
    coming = serving.arrival.report() if serving.arrival else None
    if loaded is None:
        why = f"{_model_status(serving)}: {serving.unready_reason or FIRST_REQUEST}"
        return {"status": why, "model_loaded": False, "loading": coming}
    stats = loaded.engine.stats()
    device = "cuda" if loaded.on_gpu else "cpu"
    return {
        "status": f"{device}: model loaded on {'GPU' if loaded.on_gpu else 'CPU'}",
        "model_loaded": True,
        "model_name": server.config.model.name,
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
        "prefix_cache": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_prompt_tokens,
        },
        "speculation": {
            "guessed_tokens": stats.guessed_tokens,
            "right_tokens": stats.right_tokens,
        },
        "completion_cache": asdict(server.cache.statistics()) if server.cache else None,
        "adapters": (
            [entry for entry in server.adapters.report() if visible(entry["name"])]
            if server.adapters
            else None
        ),
        "database": _answers(server.database),
        "shared_limits": _answers(server.limiter),
        "uptime_seconds": round(server.uptime_seconds, 3),
    }


def _answers(part: Database | Limiter | None) -> str | None:
    """Whether what lies outside answered when it was asked last;
    None where there is no such part."""
    return None if part is None else "away" if part.away else "answers"


def _model_status(serving: Serving) -> str:
    if serving.state is State.FAILED:
        return "failed"
    if serving.loaded:
        return "loaded"
    return "unloaded" if serving.state in (State.IDLE, State.UNLOADED) else "loading"


def _gpu_status(loaded: WarmModel | None) -> str:
    if loaded is None:
        return "unknown"
    return "available" if loaded.on_gpu else "unavailable"
