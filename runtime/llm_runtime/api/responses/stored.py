"""Responses that are kept: `GET`, `DELETE`, `POST …/cancel` and `GET …/input_items`."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from llm_runtime import errors
from llm_runtime.api.answering import caller_of
from llm_runtime.api.documents import JSON_OR_RESPONSE_EVENTS, OPENAI_ERRORS
from llm_runtime.api.guard import SECURITY, KeyedRoute
from llm_runtime.api.responses.follow import json_response, run_stream
from llm_runtime.api.server import server_of
from llm_runtime.contract import RESPONSES_PATH
from llm_runtime.db.database import DatabaseAway
from llm_runtime.sessions import Responses, Stored

router = APIRouter(
    prefix=RESPONSES_PATH,
    route_class=KeyedRoute,
    dependencies=SECURITY,
    tags=["OpenAI"],
    responses=OPENAI_ERRORS,
)

Id = Annotated[str, Path(max_length=200)]


@router.get("/{response_id}", summary="Look up a response", responses=JSON_OR_RESPONSE_EVENTS)
async def get_response(
    request: Request, response_id: Id, stream: bool = False, starting_after: int = -1
) -> Response:
    """A response that was stored; of one that runs, what is known so far.

    With `stream=true` the events of one that was begun with `background` and `stream`, also for
    some minutes after its end."""
    stored = await _find(request, response_id)
    if not stream:
        return json_response(stored.response)
    server = server_of(request)
    run = server.runs.find(response_id)
    if run is None or not run.with_events:
        message = (
            f"The response {response_id} has no events to follow here: it was not begun with"
            " background and stream, ended long ago, or runs in another replica. Ask for it without"
            " stream."
        )
        raise errors.InvalidRequest(message, param="stream")
    return run_stream(run, server.config.server.request_timeout_seconds, max(-1, starting_after))


@router.delete("/{response_id}", summary="Delete a response")
async def delete_response(request: Request, response_id: Id) -> dict[str, Any]:
    """Forget a response. One that runs is cancelled. Those that continue it can't be continued."""
    await _find(request, response_id)
    try:
        await _store(request).delete(caller_of(request).id, response_id)
    except DatabaseAway as away:
        raise errors.ServiceUnavailable("The database does not answer; try again later.") from away
    if run := server_of(request).runs.find(response_id):
        run.cancel()
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel", summary="Cancel a response")
async def cancel_response(request: Request, response_id: Id) -> Response:
    """Cancel a response that runs in the background. A second time changes nothing."""
    stored = await _find(request, response_id)
    if not stored.response["background"]:
        message = (
            "Only responses with background: true can be cancelled; this one has been answered."
        )
        raise errors.InvalidRequest(message, param="response_id")
    cancelled = Stored(
        {**stored.response, "status": "cancelled"}, stored.input, stored.before, stored.run_until
    )
    if await _store(request).end(caller_of(request).id, cancelled):
        if run := server_of(request).runs.find(response_id):
            run.cancel()
        return json_response(cancelled.response)
    stored = await _find(request, response_id)
    if stored.status != "cancelled":
        message = f"The response {response_id} is {stored.status}, so there is nothing to cancel."
        raise errors.InvalidRequest(message, param="response_id")
    return json_response(stored.response)


@router.get("/{response_id}/input_items", summary="List what a response was asked with")
async def list_input_items(
    request: Request,
    response_id: Id,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List the input items of one response, without those of the responses that it continues."""
    stored = await _find(request, response_id)
    items = stored.input if order == "asc" else stored.input[::-1]
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        message = f"There is no item {after[:100]!r} in the input of this response."
        raise errors.InvalidRequest(message, param="after")
    first = ids.index(after) + 1 if after is not None else 0
    page = items[first : first + limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": first + limit < len(items),
        }
    )


def _store(request: Request) -> Responses:
    store = server_of(request).responses
    if store is None:
        raise errors.NotFound("This server keeps no responses.", code="not_found")
    return store


async def _find(request: Request, response_id: str) -> Stored:
    """A response of the caller's. Raises `errors.NotFound`, also for one of another key."""
    found = await _store(request).find(caller_of(request).id, [response_id])
    if response_id in found:
        return found[response_id]
    message = (
        f"Response with id {response_id[:100]!r} not found: it was not stored, is deleted or has"
        " expired, or is another key's."
    )
    raise errors.NotFound(message, param="response_id")
