"""`POST /v1/responses`."""

import asyncio
import logging
import time
from contextlib import aclosing, suppress

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Message

from llm_runtime import errors
from llm_runtime.api.answering import caller_of, collect, converse, event_stream, pipeline_of
from llm_runtime.api.documents import JSON_OR_RESPONSE_EVENTS, OPENAI_ERRORS
from llm_runtime.api.guard import SECURITY, GenerationRoute
from llm_runtime.api.responses.answer import Answer
from llm_runtime.api.responses.ask import recall, store_of
from llm_runtime.api.responses.body import ResponseBody
from llm_runtime.api.responses.follow import json_response, run_stream
from llm_runtime.api.server import server_of
from llm_runtime.common.background import Run
from llm_runtime.contract import RESPONSES_PATH
from llm_runtime.stream import ClientGone, named_sse, while_connected

router = APIRouter(
    route_class=GenerationRoute, dependencies=SECURITY, tags=["OpenAI"], responses=OPENAI_ERRORS
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often a run looks whether it has been cancelled in another replica."""
SPARE_SECONDS = 30.0
"""What a run may take beyond its timeout, to be kept."""


@router.post(RESPONSES_PATH, summary="Create a response", responses=JSON_OR_RESPONSE_EVENTS)
async def create_response(request: Request, body: ResponseBody) -> Response:
    """Answer the last item, whole or as server-sent events, or in the background."""
    pipeline = pipeline_of(request)
    timeout_seconds = pipeline.config.server.request_timeout_seconds
    store = store_of(request, body)
    ask = await recall(request, body, store)
    generation, answers = await converse(request, ask)
    run_until = time.time() + timeout_seconds + SPARE_SECONDS if body.background else 0.0
    kept = None if body.store is False else store
    answer = Answer(ask, generation, pipeline, answers, kept, run_until)
    if body.background:
        await answer.begin()
        run = server_of(request).runs.begin(
            generation.job.id,
            caller_of(request).id,
            lambda run: _in_background(run, answer, timeout_seconds),
            with_events=body.stream,
        )
        return run_stream(run, timeout_seconds) if body.stream else json_response(answer.document)
    if body.stream:
        return event_stream(
            request, generation, answer.events(), answer.failed, named_sse, done=b""
        )
    [choice] = await collect(request, generation)
    return json_response(await answer.whole(choice))


async def _in_background(run: Run, answer: Answer, timeout_seconds: float) -> None:
    """Make the answer to its end, whoever listens."""

    async def made() -> None:
        async with aclosing(answer.events()) as events:
            async for event in events:
                run.send(event)

    async def receive() -> Message:
        # It may be cancelled here or, by way of the database, in another replica.
        while await answer.goes_on():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    return await run.receive()
        return {"type": "http.disconnect"}

    try:
        async with answer.generation:
            await while_connected(receive, made(), timeout_seconds)
    except ClientGone:
        pass  # Who cancelled it has noted so.
    except errors.Refusal as refusal:
        run.send(await answer.fail(refusal))
    except Exception:
        log.exception("A response in the background failed")
        fault = errors.GenerationFailed("The server failed to answer; see its log.")
        run.send(await answer.fail(fault))
