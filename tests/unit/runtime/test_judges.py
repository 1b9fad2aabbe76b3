"""The official clients, and what is built on them, against a real server:
they decide what compatible means."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from harness import KEY, Harness
from unit.runtime.judges import NEEDS_NODE, JudgedEngine, passed_by_node
from unit.runtime.responses import keeping

ROOT = Path(__file__).parents[3]
MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "hi you"}]
BUSY: Any = [{"role": "user", "content": "always busy"}]


class Place(BaseModel):
    """A pydantic model as users of `.parse` write them."""

    city: str


class weather(BaseModel):
    """Of a city."""

    city: str


TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": weather.model_json_schema()},
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def server(live: Any) -> Iterator[Harness]:
    with live(JudgedEngine()) as harness:
        yield harness


@pytest.fixture
def client(server: Harness) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as made:
        yield made


def test_chat_whole_with_choices_stop_and_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HI,
        n=2,
        stop=["here"],
        seed=1,
        logprobs=True,
        top_logprobs=1,
        user="me",
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello t"] * 2
    assert answer.choices[0].logprobs
    assert answer.choices[0].logprobs.content
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "t0"
    assert answer.usage
    assert answer.usage.prompt_tokens == 3


def test_chat_as_a_stream_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
        )
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == "Hello there!"
    )
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 3


def test_completions_whole_and_streamed(client: OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="a b", logprobs=1)
    parts = client.completions.create(model=MODEL, prompt="a b", stream=True)
    assert (
        whole.choices[0].text == "".join(part.choices[0].text for part in parts) == "Hello there!"
    )
    assert whole.choices[0].logprobs
    assert whole.choices[0].logprobs.tokens == ["Hello", " there", "!"]


def test_an_echoed_prompt_has_log_probabilities(client: OpenAI) -> None:
    choice = client.completions.create(
        model=MODEL, prompt=[[7, 8]], echo=True, logprobs=1, max_tokens=0
    ).choices[0]
    assert choice.logprobs
    assert choice.logprobs.token_logprobs == [None, -0.25]
    assert choice.finish_reason == "length"


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [found.id for found in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_parse_gives_an_object_of_the_schema(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="Kiel")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_tools_are_called_and_their_results_taken(client: OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, tools=[TOOL], tool_choice=choice
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Kiel"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    client.chat.completions.create(
        model=MODEL, messages=[*HI, answer.message, result], tools=[TOOL]
    )


def test_strict_tools_are_parsed_whole_and_in_a_stream(client: OpenAI) -> None:
    tools = [openai.pydantic_function_tool(weather)]
    whole = client.chat.completions.parse(model=MODEL, messages=HI, tools=tools)
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=tools) as stream:
        streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        [call] = answer.choices[0].message.tool_calls or ()
        assert call.function.parsed_arguments == weather(city="Kiel")


def test_parsed_messages_may_be_sent_back(client: OpenAI) -> None:
    tools = [openai.pydantic_function_tool(weather)]
    message: Any = (
        client.chat.completions.parse(model=MODEL, messages=HI, tools=tools).choices[0].message
    )
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    client.chat.completions.create(model=MODEL, messages=[*HI, message, result])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"messages": BUSY}, openai.RateLimitError),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError),
    ],
)
def test_refusals_are_the_clients_exceptions(
    client: OpenAI, fields: Any, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as caught:
        client.with_options(max_retries=0).chat.completions.create(
            **{"model": MODEL, "messages": HI, **fields}
        )
    assert caught.value.request_id


def test_a_wrong_key_is_an_authentication_error(server: Harness) -> None:
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_a_busy_server_is_asked_again_after_its_retry_after(
    client: OpenAI, server: Harness
) -> None:
    busy: Any = [{"role": "user", "content": "once busy"}]
    assert (
        client.chat.completions.create(model=MODEL, messages=busy).choices[0].message.content
        == "Hello there!"
    )
    assert server.engine.refused == 1  # type: ignore[attr-defined]


async def test_the_asynchronous_client_does_the_same(server: Harness) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=HI)
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        place = await client.chat.completions.parse(model=MODEL, messages=HI, response_format=Place)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=HI)
    assert whole.choices[0].message.content == text == "Hello there!"
    assert place.choices[0].message.parsed == Place(city="Kiel")


@NEEDS_NODE
@pytest.mark.torch  # Not for torch, but for the time that npm and Node take.
def test_the_client_for_node_passes_its_script(server: Harness) -> None:
    keeping(server)
    assert passed_by_node("openai.mjs", "openai", f"{server.url}/v1") == 17


@pytest.mark.torch  # Not for torch, but for the time that its imports take.
def test_the_langchain_example_runs(server: Harness) -> None:
    environment = {**os.environ, "LLM_URL": f"{server.url}/v1", "LLM_KEY": KEY, "LLM_MODEL": MODEL}
    command = [sys.executable, str(ROOT / "docs" / "examples" / "langchain_chat.py")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "invoke: Hello there!",
        "stream: Hello there!",
        "structured: city='Kiel'",
        "calls: [('weather', {'city': 'Kiel'})]",
        "answer: Hello there!",
    ]
