"""Anthropic's own clients against a real server: they decide what compatible means."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

from harness import EXPIRED, KEY, Harness
from unit.runtime.judges import NEEDS_NODE, JudgedEngine, passed_by_node

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi you"}]
BUSY: Any = [{"role": "user", "content": "always busy"}]
TOOL: Any = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
ASKED: Any = {"model": MODEL, "max_tokens": 20, "messages": HI}


class Place(BaseModel):
    """A pydantic model as users of `.parse` write them."""

    city: str


@pytest.fixture
def server(live: Any) -> Iterator[Harness]:
    with live(JudgedEngine()) as harness:
        yield harness


@pytest.fixture
def client(server: Harness) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key=KEY) as made:
        yield made


def test_a_message_whole(client: Anthropic) -> None:
    answer = client.messages.create(
        **ASKED, system="Be brief", stop_sequences=["!"], metadata={"user_id": "me"}
    )
    [block] = answer.content
    assert block.type == "text"
    assert block.text == "Hello there"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "!")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 3)
    assert answer._request_id


def test_the_key_may_come_as_a_bearer(server: Harness) -> None:
    with Anthropic(base_url=server.url, auth_token=KEY, api_key=None) as client:
        assert client.messages.create(**ASKED).stop_reason == "end_turn"


def test_events_of_a_stream(client: Anthropic) -> None:
    events = list(client.messages.create(**ASKED, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_streams_helper_puts_the_message_together(client: Anthropic) -> None:
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == "Hello there!"
        message = stream.get_final_message()
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 3)


def test_a_tool_is_called_and_its_result_taken(client: Anthropic) -> None:
    choice: Any = {"type": "tool", "name": "weather"}
    answer = client.messages.create(**ASKED, tools=[TOOL], tool_choice=choice)
    [call] = answer.content
    assert answer.stop_reason == "tool_use"
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Kiel"})
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages: Any = [
        *HI,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    last = client.messages.create(**{**ASKED, "messages": messages}, tools=[TOOL])
    assert last.stop_reason == "end_turn"


def test_a_streamed_call_is_put_together(client: Anthropic) -> None:
    with client.messages.stream(**ASKED, tools=[TOOL], tool_choice={"type": "any"}) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        [call] = stream.get_final_message().content
    assert call.type == "tool_use"
    assert call.input == {"city": "Kiel"}
    assert "".join(parts) == '{"city": "Kiel"}'


def test_parse_gives_an_object_of_the_schema(client: Anthropic) -> None:
    answer = client.messages.parse(**ASKED, output_format=Place)
    assert answer.parsed_output == Place(city="Kiel")


def test_tokens_are_counted(client: Anthropic) -> None:
    counted = client.messages.count_tokens(
        model=MODEL, messages=HI, system="Be brief", tools=[TOOL]
    )
    assert counted.input_tokens == 6


@pytest.mark.parametrize(
    ("fields", "error", "kind"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"temperature": 9}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": BUSY}, anthropic.RateLimitError, "rate_limit_error"),
        ({"extra_body": {"nonsense": 1}}, anthropic.BadRequestError, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": "x" * 2_000_000}]},
            anthropic.ContentTooLargeError,
            "request_too_large",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_clients_exceptions(
    client: Anthropic, stream: bool, fields: Any, error: type[anthropic.APIStatusError], kind: str
) -> None:
    once = client.with_options(max_retries=0)
    with pytest.raises(error) as caught:
        once.messages.create(**{**ASKED, **fields, "stream": stream})
    assert caught.value.request_id
    assert caught.value.type == kind
    assert caught.value.api_message


def test_wrong_keys_are_the_clients_exceptions(server: Harness) -> None:
    wrong: Any = [
        ("wrong", anthropic.AuthenticationError),
        (EXPIRED, anthropic.PermissionDeniedError),
    ]
    for key, error in wrong:
        with Anthropic(base_url=server.url, api_key=key) as client, pytest.raises(error):
            client.messages.create(**ASKED)


def test_a_base_url_with_the_root_says_how_it_must_end(server: Harness) -> None:
    with (
        Anthropic(base_url=f"{server.url}/v1", api_key=KEY) as client,
        pytest.raises(anthropic.NotFoundError, match="end before /v1"),
    ):
        client.messages.create(**ASKED)


def test_a_server_that_leaves_is_an_exception_of_its_own(
    client: Anthropic, server: Harness
) -> None:
    server.engine.draining = True
    with pytest.raises(anthropic.ServiceUnavailableError) as caught:
        client.with_options(max_retries=0).messages.create(**ASKED)
    assert caught.value.type == "overloaded_error"


def test_a_busy_server_is_asked_again_after_its_retry_after(
    client: Anthropic, server: Harness
) -> None:
    busy: Any = [{"role": "user", "content": "once busy"}]
    answer = client.messages.create(**{**ASKED, "messages": busy})
    assert answer.stop_reason == "end_turn"
    assert server.engine.refused == 1  # type: ignore[attr-defined]


async def test_the_asynchronous_client_does_the_same(server: Harness) -> None:
    async with AsyncAnthropic(base_url=server.url, api_key=KEY) as client:
        whole = await client.messages.create(**ASKED)
        async with client.messages.stream(**ASKED) as stream:
            text = await stream.get_final_text()
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**{**ASKED, "model": "other"})
    assert whole.content[0].type == "text"
    assert whole.content[0].text == text == "Hello there!"


@NEEDS_NODE
@pytest.mark.torch  # Not for torch, but for the time that npm and Node take.
def test_the_client_for_node_passes_its_script(server: Harness) -> None:
    assert passed_by_node("anthropic.mjs", "@anthropic-ai/sdk", server.url) == 8
