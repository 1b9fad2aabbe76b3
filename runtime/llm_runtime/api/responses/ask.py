"""What a request asks, with the items that it refers to: those of the responses that it continues,
and single ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from llm_runtime import errors
from llm_runtime.api.answering import caller_of, job, pipeline_of
from llm_runtime.api.body import MAX_MESSAGES, sampling
from llm_runtime.api.responses.body import ResponseBody
from llm_runtime.api.responses.conversation import droppable, for_template
from llm_runtime.api.responses.ids import RESPONSE, response_of
from llm_runtime.api.responses.items import InputItem, problems
from llm_runtime.api.server import server_of
from llm_runtime.pipeline import NOT_ASKED, Job
from llm_runtime.request import TextCodec
from llm_runtime.sessions import Responses, Stored
from llm_runtime.tools.offer import Answers, Offer, answers_to, check_messages, check_template
from llm_runtime.tools.thoughts import effort_options

CONTINUED = ("completed", "incomplete")
"""Statuses of responses that can be continued."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request whose items are known. A `Conversation`."""

    body: ResponseBody
    items: tuple[InputItem, ...]
    """Input of the request itself, with what its references refer to in their place."""
    before: tuple[InputItem, ...] = ()
    """Items of the responses that it continues."""
    continues: tuple[str, ...] = ()
    """Ids of these responses, oldest first."""

    @property
    def model(self) -> str:
        return self.body.model

    def offer(self, template: str) -> Offer | None:
        """The tools that the model may call.
        Raises `errors.InvalidRequest` if its template can't show them."""
        check_messages(template, self.items, "input")
        if any(item.speaks_of_tools for item in self.before):
            check_template(template, "previous_response_id")
        return self.body.offer_in(template)

    def answers(self, codec: TextCodec, offer: Offer | None) -> Answers:
        """How to parse the model's answers."""
        bound = self.body.text.format.constraint() is not None
        return answers_to(codec, offer, self._template_options, bound=bound)

    def job(self, request: Request, adapter: str, answers: Answers) -> Job:
        """The job whose answer this is."""
        body = self.body
        codec = pipeline_of(request).codec
        offer = answers.offer
        constraint = body.text.format.constraint()
        messages = for_template(body.instructions, (*self.before, *self.items))
        chosen: dict[str, Any] = body.chosen(codec.sampling_defaults)
        return job(
            request,
            RESPONSE,
            prompts=(messages,),
            tools=tuple(tool.for_template() for tool in body.offered),
            template_options=self._template_options,
            prompt_field="input",
            sampling=sampling(
                max_tokens=body.max_output_tokens or NOT_ASKED,
                stop=[],
                logprobs=body.logprobs,
                constraint=offer.constraint(constraint, codec.control_ids) if offer else constraint,
                **chosen,
            ),
            constraint_field="tools" if offer else "text.format",
            shown_token_ids=answers.reading.shown(codec.control_ids),
            droppable_messages=droppable(messages) if body.truncation == "auto" else 0,
            adapter=adapter,
            stream=body.stream,
            user=body.safety_identifier or body.user,
        )

    @property
    def _template_options(self) -> dict[str, Any]:
        return effort_options(self.body.reasoning.effort)


def store_of(request: Request, body: ResponseBody) -> Responses | None:
    """Where the response is kept; None if it is not.
    Raises `errors.InvalidRequest` for what needs a store where there is none."""
    store = None if request.state.unbilled else server_of(request).responses
    needed = {
        "previous_response_id": body.previous_response_id is not None,
        "background": body.background,
        "store": body.store is True and not request.state.unbilled,
    }
    for field, wanted in needed.items():
        if wanted and store is None:
            message = (
                f"This server keeps no responses; send the request without {field}, and the whole"
                " conversation as input."
            )
            raise errors.InvalidRequest(message, param=field, code="unsupported_parameter")
    return store


async def recall(request: Request, body: ResponseBody, store: Responses | None) -> Ask:
    """The request with all that it refers to. Raises `errors.InvalidRequest` and
    `errors.NotFound` for what is not there, or is another key's."""
    referred = {response_of(item.id or "") for item in body.input if item.type == "item_reference"}
    wanted = {*referred, *([body.previous_response_id] if body.previous_response_id else [])}
    tenant = caller_of(request).id
    found = await store.find(tenant, wanted) if store and wanted else {}
    continues = _continues(body.previous_response_id, found)
    if missing := set(continues) - found.keys():
        found |= await store.find(tenant, missing) if store else {}
    items = tuple(_resolved(body, found))
    before = tuple(item for id_ in continues for item in _all_items(id_, found))
    if len(before) + len(items) > MAX_MESSAGES:
        message = (
            f"The conversation has more than {MAX_MESSAGES} items; begin a new one with what still"
            " matters of it."
        )
        raise errors.InvalidRequest(message, param="previous_response_id")
    for field, problem in problems(before, items):
        message = f"{field}: {problem}"
        raise errors.InvalidRequest(message, param=field, code="invalid_value")
    return Ask(body, items, before, continues)


def _continues(previous: str | None, found: dict[str, Stored]) -> tuple[str, ...]:
    if previous is None:
        return ()
    stored = found.get(previous)
    if stored is None:
        raise _not_found(previous)
    if stored.status not in CONTINUED:
        message = (
            f"The response {previous} is {stored.status} and can't be continued; continue one that"
            " is completed."
        )
        raise errors.InvalidRequest(message, param="previous_response_id", code="invalid_value")
    return (*stored.before, previous)


def _all_items(id_: str, found: dict[str, Stored]) -> list[InputItem]:
    stored = found.get(id_)
    if stored is None:
        raise _not_found(id_)
    return [_parsed(item, id_) for item in (*stored.input, *stored.response["output"])]


def _resolved(body: ResponseBody, found: dict[str, Stored]) -> Iterator[InputItem]:
    for number, item in enumerate(body.input):
        if item.type != "item_reference":
            yield item
            continue
        stored = found.get(response_of(item.id or ""))
        kept = [*stored.input, *stored.response["output"]] if stored else []
        own = next((each for each in kept if each["id"] == item.id), None)
        if own is None:
            message = (
                f"There is no item {str(item.id)[:100]!r} here; it was not stored, or is no longer."
                " Send the item itself."
            )
            raise errors.NotFound(message, param=f"input[{number}].id")
        yield _parsed(own, str(item.id))


def _parsed(item: dict[str, Any], id_: str) -> InputItem:
    try:
        return InputItem.model_validate(item)
    except ValidationError:  # Another version of this program wrote it.
        raise _not_found(id_) from None


def _not_found(id_: str) -> errors.Refusal:
    message = (
        f"Previous response with id {id_[:100]!r} not found: it was not stored, is deleted or has"
        " expired. Send the whole conversation as input."
    )
    return errors.InvalidRequest(
        message, param="previous_response_id", code="previous_response_not_found"
    )
