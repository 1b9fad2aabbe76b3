"""Answers of real engines, read over HTTP by OpenAI's client:
special tokens, thoughts, calls that are cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from openai import OpenAI  # noqa: E402

from harness import KEY, config  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from unit.runtime import parrot  # noqa: E402
from unit.runtime.tools.templates import QWEN  # noqa: E402

MODEL = "support-bot"
ASKED: Any = [{"role": "user", "content": "weather?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
THINKING = QWEN + "{# </think> #}"
CALL = [
    "<tool_call>",
    '\n{"name": "get_weather", ',
    '"arguments": {"city": "RO',
    'ME"}}\n',
    "</tool_call>",
]
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


@pytest.fixture
def says(live: Any, tmp_path: Path) -> Any:
    """A client of a server whose model says a script."""

    @contextmanager
    def start(
        script: list[str], template: str = QWEN, special: list[str] = TAGS
    ) -> Iterator[OpenAI]:
        folder = parrot.make(tmp_path / "model", script, template, special)
        settings = EngineConfig(device="cpu", max_model_length=512, max_batch_size=4)
        engine, _ = build_engine(
            config().model_copy(update={"model": ModelConfig(name=MODEL), "engine": settings}),
            folder,
        )
        with live(engine) as server, OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            yield client

    return start


def ask(client: OpenAI, **fields: Any) -> tuple[Any, str, str, list[tuple[str, str]]]:
    """(finish reason, content, thoughts, calls), the same whole and in a stream."""
    fields = {"model": MODEL, "messages": ASKED, "temperature": 0, "tools": [TOOL], **fields}
    choice = client.chat.completions.create(**fields).choices[0]
    calls = [
        (call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()
    ]
    whole = (
        choice.finish_reason,
        choice.message.content or "",
        getattr(choice.message, "reasoning_content", ""),
        calls,
    )
    reason = None
    text = ""
    thoughts = ""
    names = dict[int, str]()
    arguments = dict[int, str]()
    for chunk in client.chat.completions.create(**fields, stream=True):
        delta = chunk.choices[0].delta
        text = text + (delta.content or "")
        thoughts = thoughts + getattr(delta, "reasoning_content", "")
        for call in delta.tool_calls or ():
            names[call.index] = call.function.name or names.get(call.index, "")
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
        reason = chunk.choices[0].finish_reason or reason
    assert (reason, text, thoughts, [(names[at], arguments[at]) for at in names]) == whole
    return whole


@pytest.mark.parametrize("special", [TAGS, []], ids=["special tokens", "letters"])
def test_a_call_is_one_whatever_its_tags_are(says: Any, special: list[str]) -> None:
    with says(CALL, special=special) as client:
        assert ask(client) == ("tool_calls", "", "", [("get_weather", '{"city": "ROME"}')])
        forced = ask(client, tool_choice="required", max_tokens=100, parallel_tool_calls=False)
        assert [name for name, _ in forced[3]] == ["get_weather"]
        for tokens, calls in (
            (1, []),
            (2, [("get_weather", "")]),
            (3, [("get_weather", '{"city": "RO')]),
        ):
            assert ask(client, max_tokens=tokens) == ("length", "", "", calls)
        assert ask(client, stop=["\n"])[:2] == ("stop", "")


def test_a_call_in_a_thought_is_reasoning(says: Any) -> None:
    with says(["<think>", "\nI could ", *CALL, "</think>", "\n\nFine."], THINKING) as client:
        thoughts = "I could " + "".join(CALL)
        assert ask(client) == ("stop", "Fine.", thoughts, [])
        assert ask(client, tools=[], extra_body={}) == ("stop", "Fine.", thoughts, [])
        text = client.completions.create(
            model=MODEL, prompt="x<|assistant|>", temperature=0, max_tokens=50
        )
        assert "<think>" not in text.choices[0].text  # Special tokens show to nobody else.


def test_logprobs_add_up_to_the_answer(says: Any) -> None:
    with says(["Grü", "\u00c3", "ße", " 世"]) as client:
        choice = client.chat.completions.create(
            model=MODEL, messages=ASKED, temperature=0, logprobs=True, top_logprobs=2
        ).choices[0]  # fmt: skip
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        assert "".join(entry.token for entry in entries) == choice.message.content
        assert (
            b"".join(bytes(entry.bytes or ()) for entry in entries).decode()
            == choice.message.content
        )
