"""OpenAI's own client asks the Responses API of a real server: it decides what compatible means."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from harness import KEY, Harness
from unit.runtime.judges import JudgedEngine
from unit.runtime.responses import keeping
from waiting import eventually

MODEL = "support-bot"
ASKED: Any = {"model": MODEL, "input": "hi you"}


class Place(BaseModel):
    """A pydantic model as users of `.parse` write them."""

    city: str


class weather(BaseModel):
    """Of a city."""

    city: str


TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": weather.model_json_schema(),
    "strict": False,
}
NAMED: Any = {"type": "function", "name": "weather"}
IMAGE: Any = [
    {"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": "auto"}]}
]
RESULT: Any = [{"type": "function_call_output", "call_id": "call_1", "output": "rain"}]


@pytest.fixture
def server(live: Any) -> Iterator[Harness]:
    with live(JudgedEngine()) as harness:
        keeping(harness)
        yield harness


@pytest.fixture
def client(server: Harness) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_a_response_whole(client: OpenAI) -> None:
    answer = client.responses.create(
        **ASKED, instructions="Be brief", metadata={"a": "b"}, max_output_tokens=20
    )
    assert (answer.output_text, answer.status, answer.error) == ("Hello there!", "completed", None)
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 3)
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert (answer.instructions, answer.metadata) == ("Be brief", {"a": "b"})


def test_events_of_a_stream(client: OpenAI) -> None:
    events = list(client.responses.create(**ASKED, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))


def test_the_streams_helper_puts_the_response_together(client: OpenAI) -> None:
    with client.responses.stream(**ASKED) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == "Hello there!"
        answer = stream.get_final_response()
    assert (answer.output_text, answer.status) == ("Hello there!", "completed")


def test_parse_gives_an_object_of_the_schema(client: OpenAI) -> None:
    assert client.responses.parse(**ASKED, text_format=Place).output_parsed == Place(city="Kiel")
    with client.responses.stream(**ASKED, text_format=Place) as stream:
        assert stream.get_final_response().output_parsed == Place(city="Kiel")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_function_is_called_and_its_output_taken(client: OpenAI, choice: Any) -> None:
    answer = client.responses.create(**ASKED, tools=[TOOL], tool_choice=choice)
    [call] = answer.output
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("weather", '{"city": "Kiel"}')
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    by_id = client.responses.create(
        model=MODEL, tools=[TOOL], input=[output], previous_response_id=answer.id
    )
    hi: Any = {"role": "user", "content": "hi you"}
    by_items = client.responses.create(
        model=MODEL, tools=[TOOL], input=[hi, call.to_dict(), output], store=False
    )
    assert by_id.output_text == by_items.output_text == "Hello there!"


def test_strict_functions_are_parsed_whole_and_in_a_stream(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(weather)["function"]
    tools: Any = [{"type": "function", **tool}]
    choice: Any = "required"
    whole = client.responses.parse(**ASKED, tools=tools, tool_choice=choice)
    with client.responses.stream(**ASKED, tools=tools, tool_choice=choice) as stream:
        parts = [
            event.delta
            for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        streamed = stream.get_final_response()
    assert "".join(parts) == '{"city": "Kiel"}'
    for answer in (whole, streamed):
        [call] = answer.output
        assert call.type == "function_call"
        assert call.name == "weather"


def test_a_response_is_looked_up_continued_and_deleted(client: OpenAI) -> None:
    first = client.responses.create(**ASKED)
    second = client.responses.create(model=MODEL, input="more", previous_response_id=first.id)
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    [item] = client.responses.input_items.list(second.id)
    assert item.type == "message"
    assert item.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="not found") as caught:
        client.responses.create(model=MODEL, input="on", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


def test_one_in_the_background_is_polled_and_cancelled(client: OpenAI, server: Harness) -> None:
    server.engine.token_seconds = 0.2
    begun = client.responses.create(**ASKED, background=True)
    assert begun.status == "in_progress"
    cancelled = client.responses.cancel(begun.id)
    assert (cancelled.status, client.responses.cancel(begun.id).status) == ("cancelled",) * 2
    server.engine.token_seconds = 0
    begun = client.responses.create(**ASKED, background=True)
    eventually(lambda: client.responses.retrieve(begun.id).status == "completed")
    assert client.responses.retrieve(begun.id).output_text == "Hello there!"
    with pytest.raises(openai.BadRequestError, match="nothing to cancel"):
        client.responses.cancel(begun.id)


def test_one_in_the_background_is_followed_from_where_its_stream_broke(client: OpenAI) -> None:
    with client.responses.create(**ASKED, background=True, stream=True) as stream:
        first = next(iter(stream))
    assert first.type == "response.created"
    with client.responses.stream(response_id=first.response.id, starting_after=3) as followed:
        numbers = [event.sequence_number for event in followed]
        assert followed.get_final_response().output_text == "Hello there!"
    assert numbers == list(range(4, 11))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "other"}, openai.NotFoundError, "no model"),
        ({"temperature": 9}, openai.BadRequestError, "less than"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "not supported"),
        ({"input": "always busy"}, openai.RateLimitError, "wait"),
        ({"input": IMAGE}, openai.BadRequestError, "text only"),
        ({"input": RESULT}, openai.BadRequestError, "no function_call before it"),
        ({"input": [{"type": "mcp_call"}]}, openai.BadRequestError, "runs no tools"),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "run it yourself"),
        ({"conversation": "conv_1"}, openai.BadRequestError, "previous_response_id"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "not found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_clients_exceptions(
    client: OpenAI, stream: bool, fields: Any, error: type[openai.APIStatusError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        client.responses.create(**{**ASKED, **fields}, stream=stream)
    assert caught.value.request_id


async def test_the_asynchronous_client_does_the_same(server: Harness) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        whole = await client.responses.create(**ASKED)
        async with client.responses.stream(**ASKED) as stream:
            streamed = await stream.get_final_response()
        place = await client.responses.parse(**ASKED, text_format=Place)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_1")
    assert whole.output_text == streamed.output_text == "Hello there!"
    assert place.output_parsed == Place(city="Kiel")
