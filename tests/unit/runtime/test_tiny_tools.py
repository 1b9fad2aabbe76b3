"""A random model, which knows nothing,
calls tools and writes JSON as it must, through OpenAI's client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from openai import OpenAI  # noqa: E402
from pydantic import BaseModel, ConfigDict  # noqa: E402

from harness import KEY, config  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.tools.templates import LLAMA, MISTRAL, QWEN  # noqa: E402

MODEL = "support-bot"
HI: Any = [{"role": "user", "content": "go"}]


class Order(BaseModel):
    """What the arguments must be."""

    model_config = ConfigDict(extra="forbid")

    size: Literal["small", "large"]
    number: Literal[1, 2, 3]


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": Order.model_json_schema()}}


@pytest.fixture(params=[QWEN, LLAMA, MISTRAL], ids=["qwen", "llama", "mistral"])
def client(request: pytest.FixtureRequest, live: Any, tmp_path: Path) -> Iterator[OpenAI]:
    settings = EngineConfig(
        device="cpu", max_model_length=2048, max_batch_size=8, max_batch_tokens=64
    )
    model = ModelConfig(name=MODEL, chat_template=request.param)
    folder = tiny_model.make(tmp_path / "model", max_positions=2048)
    engine, _ = build_engine(
        config().model_copy(update={"model": model, "engine": settings}), folder
    )
    with live(engine) as server, OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as made:
        yield made


def test_a_required_or_named_tool_is_called_with_arguments_of_its_schema(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "sell"}}
    for seed, choice in enumerate(["required", named, "required"]):
        answer = client.chat.completions.create(
            model=MODEL, messages=HI, tools=[tool("buy"), tool("sell")], tool_choice=choice, seed=seed, max_tokens=300,
            parallel_tool_calls=False,
        )  # fmt: skip
        [call] = answer.choices[0].message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name in (("sell",) if choice == named else ("buy", "sell"))
        Order.model_validate_json(call.function.arguments)
        assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == (
            "tool_calls",
            None,
        )


def test_a_streamed_call_adds_up_to_arguments_of_its_schema(client: OpenAI) -> None:
    chunks = client.chat.completions.create(
        model=MODEL, messages=HI, tools=[tool("buy")], tool_choice="required", seed=1, max_tokens=300, stream=True,
        parallel_tool_calls=False,
    )  # fmt: skip
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    Order.model_validate_json(
        "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    )


def test_parse_gives_an_object_of_the_schema(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=HI, response_format=Order, seed=3, max_tokens=300
    )
    assert answer.choices[0].message.parsed is not None


def test_a_schema_that_can_not_be_is_refused_by_name(client: OpenAI) -> None:
    impossible: Any = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": False}}},
    }
    impossible["function"]["parameters"]["required"] = ["a"]
    with pytest.raises(Exception, match="tools") as caught:
        client.chat.completions.create(
            model=MODEL, messages=HI, tools=[impossible], tool_choice="required"
        )
    assert json.loads(caught.value.response.text)["error"]["param"] == "tools"  # type: ignore[attr-defined]
