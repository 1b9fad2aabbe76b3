"""Each row of docs/compatibility.md is asked of a served model:
a row without a check here fails."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from fakes import ScriptedEngine
from harness import EXPIRED, KEY, SUSPENDED, Harness, events
from llm_runtime.__main__ import cli
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.contract import CompletionCacheConfig, FiltersConfig, ServerConfig, Tier
from llm_runtime.db.tables import metadata
from llm_runtime.limits import Limiter
from llm_runtime.logs import JsonFormatter
from llm_runtime.settings import SettingsInvalid, load
from unit.runtime.responses import keeping
from unit.runtime.test_chat import Remembered
from unit.runtime.test_compatibility import ROOT
from unit.runtime.test_embeddings import embedder
from unit.runtime.test_manage import ADMIN, USER, serve

SAID = "Hello there!"


@dataclass
class Site:
    """A served model, ways to other ones, and what the row says of how."""

    api: Harness
    run: Any
    how: str
    folder: Path
    set: Callable[[str, str], None]

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self.api.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str) -> Any:
        answer = await self.api.client.get(path)
        assert answer.status_code == 200
        return answer.json() if "json" in answer.headers["content-type"] else answer.text

    def start(self, yaml: str = "model: {name: m, path: /m}", **environment: str) -> Any:
        """The settings of a start with this file and environment."""
        for name, value in environment.items():
            self.set(name, value)
        (self.folder / "config.yml").write_text(yaml)
        return load(self.folder / "config.yml", None)


Check = Callable[[Site], Awaitable[None]]
CHECKS: dict[tuple[str, str], Check] = {}
UNTRIED: dict[tuple[str, str], str] = {}
SECTION = ""


def of(section: str, *rows: str) -> Callable[[Check], Check]:
    def note(check: Check) -> Check:
        for row in rows:
            CHECKS[section, row] = check
        return check

    return note


def untried(section: str, row: str, why: str) -> None:
    UNTRIED[section, row] = why


def rows() -> dict[tuple[str, str], tuple[str, str]]:
    """(status, how) by (section, name)."""
    found = {}
    section = ""
    for line in (ROOT / "docs/compatibility.md").read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].partition(":")[0]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] not in ("name", "framework", "---"):
            assert (section, cells[0]) not in found, f"{cells[0]} stands twice under {section}"
            found[section, cells[0]] = (cells[1], cells[2])
    return found


def test_no_check_is_of_a_row_that_is_gone() -> None:
    assert not (CHECKS.keys() | UNTRIED.keys()) - rows().keys()
    assert not CHECKS.keys() & UNTRIED.keys()


@pytest.mark.parametrize("row", rows(), ids=" ".join)
async def test_a_row_is_true(
    row: tuple[str, str], api: Harness, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "MODEL_NAME", "MODEL_PATH", "MODEL_VERSION", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    if row in UNTRIED:
        pytest.skip(UNTRIED[row])
    assert row in CHECKS, (
        f"{row} has no check in {Path(__file__).name}: write one, or say there why it can't be tried"
    )
    await CHECKS[row](Site(api, run, rows()[row][1], tmp_path, monkeypatch.setenv))


def renamed(section: str, row: str, *old: tuple[str, str]) -> None:
    """The start ends with `old` YAML and says a name that the row has, too."""

    async def check(site: Site) -> None:
        for yaml, now in old:
            assert now in site.how, f"the row says nothing of {now}"
            with pytest.raises(SettingsInvalid) as caught:
                site.start(
                    f"model: {{name: m, path: /m}}\n{yaml}"
                    if not yaml.startswith("model")
                    else yaml
                )
            assert now in str(caught.value)

    CHECKS[section, row] = check


def in_the_repository(section: str, row: str, *files: str) -> None:
    async def check(site: Site) -> None:
        for file in files:
            assert (ROOT / file).exists(), file

    CHECKS[section, row] = check


# --- Anthropic's API

ANTHROPIC = "Anthropic's API"


async def message(site: Site, status: int = 200, path: str = "", **fields: Any) -> Any:
    said = [{"role": "user", "content": "hi"}]
    asked = {"model": "support-bot", "max_tokens": 9, "messages": said, **fields}
    kept = {name: value for name, value in asked.items() if value is not None}
    return await site.post(f"/v1/messages{path}", status, **kept)


@of(ANTHROPIC, "`POST /v1/messages`", "`stop_reason`, `stop_sequence`, `usage`")
async def _(site: Site) -> None:
    answer = await message(site, stop_sequences=["there"])
    assert answer["content"] == [{"type": "text", "text": "Hello "}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "there")
    assert answer["usage"]["output_tokens"] == 2


@of(ANTHROPIC, "`POST /v1/messages/count_tokens`")
async def _(site: Site) -> None:
    assert await message(site, path="/count_tokens", max_tokens=None) == {"input_tokens": 2}


@of(ANTHROPIC, "`x-api-key`, `anthropic-version`")
async def _(site: Site) -> None:
    for version, status in (("2023-06-01", 200), ("2026-10-21", 200), ("2023-01-01", 400)):
        site.api.client.headers["anthropic-version"] = version
        await message(site, status)


@of(ANTHROPIC, "`messages`, `system`")
async def _(site: Site) -> None:
    await message(site, system="Be brief")
    assert site.api.engine.codec.chats[-1][0] == {"role": "system", "content": "Be brief"}
    image = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    refused = await message(site, 400, messages=image)
    assert "as text" in refused["error"]["message"]
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    await message(site, 400, messages=begun)


@of(
    ANTHROPIC,
    "`max_tokens`, `temperature`, `top_p`, `top_k`, `stop_sequences`, `metadata.user_id`",
)
async def _(site: Site) -> None:
    await message(site, temperature=0.5, top_p=0.5, top_k=3, metadata={"user_id": "u"})
    sampling = site.api.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.5, 3)
    assert (await message(site, 400, max_tokens=0))["error"]["type"] == "invalid_request_error"


@of(
    ANTHROPIC,
    "`tools`, `tool_choice`, blocks `tool_use` and `tool_result`",
    "`thinking`, `output_config`",
)
async def _(site: Site) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}}
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    async with site.run(with_tools("<think>", "hm", "</think>", call)) as api:
        other = Site(api, site.run, site.how, site.folder, site.set)
        thinking = {"type": "enabled", "budget_tokens": 5}
        answer = await message(other, tools=[tool], thinking=thinking)
        assert api.engine.codec.options[-1]["thinking_budget"] == 5
    assert [block["type"] for block in answer["content"]] == ["thinking", "tool_use"]
    assert answer["stop_reason"] == "tool_use"
    output = {"format": {"type": "json_schema", "schema": {}}, "effort": "low"}
    await message(site, output_config=output)
    assert site.api.engine.codec.constraints


@of(ANTHROPIC, "`stream`")
async def _(site: Site) -> None:
    said = [{"role": "user", "content": "hi"}]
    asked = {"model": "support-bot", "max_tokens": 9, "messages": said, "stream": True}
    text = (await site.api.client.post("/v1/messages", json=asked)).text
    names = re.findall("event: (.*)", text)
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@of(ANTHROPIC, "errors", "`request-id`, `retry-after`")
async def _(site: Site) -> None:
    site.api.engine.max_running = 0
    said = [{"role": "user", "content": "hi"}]
    asked = {"model": "support-bot", "max_tokens": 9, "messages": said}
    answer = await site.api.client.post("/v1/messages", json=asked)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert answer.headers["retry-after"]
    assert answer.headers["request-id"] == answer.json()["request_id"]


@of(ANTHROPIC, "`cache_control`, `service_tier`")
async def _(site: Site) -> None:
    await message(site, cache_control={"type": "ephemeral"}, service_tier="auto")


@of(
    ANTHROPIC,
    "`container`, `mcp_servers`, `inference_geo`, tools that Anthropic's API runs, Files, Batches",
)
async def _(site: Site) -> None:
    for field in ("container", "mcp_servers", "inference_geo"):
        await message(site, 400, **{field: "x"})
    await message(site, 400, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    await site.post("/v1/messages/batches", 404)


# --- OpenAI's API

OPENAI = "OpenAI's API"


@of(OPENAI, "`POST /v1/chat/completions`")
async def _(site: Site) -> None:
    answer = (await site.api.chat()).json()
    assert answer["choices"][0]["message"]["content"] == SAID


@of(OPENAI, "`POST /v1/completions`")
async def _(site: Site) -> None:
    assert (await site.api.complete()).json()["choices"][0]["text"] == SAID


@of(OPENAI, "`GET /v1/models`")
async def _(site: Site) -> None:
    site.api.engine.adapters = ("legal",)
    ids = [model["id"] for model in (await site.get("/v1/models"))["data"]]
    assert ids == ["support-bot", "support-bot:legal"]
    model = await site.get("/v1/models/support-bot")
    assert (model["id"], model["max_model_len"]) == ("support-bot", 64)


@of(OPENAI, "`model`")
async def _(site: Site) -> None:
    answer = await site.api.chat(model="other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def with_tools(*script: str) -> ScriptedEngine:
    engine = ScriptedEngine(script)
    template = Path(__file__).parent / "chat_templates/qwen3.jinja"
    engine.codec.chat_template = engine.codec.tool_template = template.read_text()
    return engine


@of(OPENAI, "`messages`")
async def _(site: Site) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [
        {"role": "developer", "content": "be kind", "name": "boss"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": "hi"}],
            "name": "joe",
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call],
            "reasoning_content": "hm",
            "refusal": None,
        },
        {"role": "tool", "tool_call_id": "1"},
    ]
    async with site.run(with_tools("Hello")) as api:
        answer = await api.chat(messages=[{"role": "system", "content": "s"}, *history])
    assert answer.is_success, answer.text
    assert api.engine.codec.chats[-1][2]["content"] == "Say\nhi"
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    assert (await site.api.chat(messages=[{"role": "user", "content": image}])).status_code == 400


@of(OPENAI, "`max_tokens`, `max_completion_tokens`")
async def _(site: Site) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        choice = (await site.api.chat(**{field: 1})).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")
    assert (await site.api.chat(max_tokens=1, max_completion_tokens=2)).status_code == 400


@of(
    OPENAI,
    "`temperature`, `top_p`, `n`, `stop`, `seed`, `presence_penalty`, `frequency_penalty`, `logit_bias`",
)
async def _(site: Site) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.5,
        "seed": 1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
    }
    answer = await site.api.chat(**fields, n=2, stop=["there"], logit_bias={"5": 1})
    assert [choice["message"]["content"] for choice in answer.json()["choices"]] == ["Hello "] * 2
    sampling = site.api.engine.requests[0].sampling
    assert {field: getattr(sampling, field) for field in fields} == fields
    site.api.engine.codec.sampling_defaults = {"temperature": 0.25}
    await site.api.chat()
    assert site.api.engine.requests[-1].sampling.temperature == 0.25
    assert (await site.api.chat(n=128)).is_success
    assert (await site.api.chat(n=129)).status_code == 400
    assert (await site.api.chat(stop=list("abcdefghijklmnop"))).is_success
    assert (await site.api.chat(stop=list("abcdefghijklmnopq"))).status_code == 400


@of(OPENAI, "`stream`, `stream_options.include_usage`")
async def _(site: Site) -> None:
    chunks = events((await site.api.chat(stream=True, stream_options={"include_usage": True})).text)
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["usage"]["completion_tokens"] == 3
    for field in ("include_obfuscation", "continuous_usage_stats"):
        for value, status in ((False, 200), (True, 400)):
            assert (
                await site.api.chat(stream=True, stream_options={field: value})
            ).status_code == status


@of(OPENAI, "`logprobs`, `top_logprobs`")
async def _(site: Site) -> None:
    entry = (await site.api.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"][
        "content"
    ][0]
    assert (entry["token"], entry["logprob"], len(entry["top_logprobs"])) == ("Hello", -0.5, 2)


@of(OPENAI, "`response_format`")
async def _(site: Site) -> None:
    for kind, extra in (
        ("text", {}),
        ("json_object", {}),
        ("json_schema", {"json_schema": {"name": "n", "schema": {}}}),
    ):
        assert (await site.api.chat(response_format={"type": kind, **extra})).is_success
    assert len(site.api.engine.codec.constraints) == 2


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}


@of(
    OPENAI,
    "`tools`, `tool_choice`, `parallel_tool_calls`",
    "`tool_calls` in answers",
    "`reasoning_content` in answers",
)
async def _(site: Site) -> None:
    assert (
        await site.api.chat(tools=[TOOL])
    ).status_code == 400  # This model's template knows none.
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    async with site.run(with_tools("<think>", "hm", "</think>", call)) as api:
        choice = (
            await api.chat(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True)
        ).json()["choices"][0]
        streamed = events((await api.chat(tools=[TOOL], stream=True)).text)[:-1]
        info = (await api.client.get("/info")).json()["chat"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert choice["message"]["reasoning_content"] == "hm"
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    assert any(delta.get("reasoning_content") for delta in deltas)
    assert (
        next(d["tool_calls"][0]["function"]["name"] for d in deltas if d.get("tool_calls")) == "f"
    )
    assert (info["tools"], info["reasoning"]) == (True, True)


def ignored(row: str, *fields: dict[str, Any], refused: dict[str, Any] | None = None) -> None:
    async def check(site: Site) -> None:
        for each in fields:
            answer = await site.api.chat(**each)
            assert answer.is_success, (each, answer.text)
        for name, value in (refused or {}).items():
            answer = await site.api.chat(**{name: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)

    CHECKS[OPENAI, row] = check


ignored(
    "`functions`, `function_call`",
    {"functions": None, "function_call": None},
    refused={"functions": [{"name": "f"}]},
)
ignored(
    "`store`, `metadata`, `service_tier`, `prompt_cache_key`, `prompt_cache_options`, `prompt_cache_retention`, "
    "`verbosity`, `prediction`",
    {"store": True}, {"metadata": {"a": "b"}}, {"service_tier": "flex"}, {"prompt_cache_key": "k"},
    {"prompt_cache_options": {}}, {"prompt_cache_retention": "24h"}, {"verbosity": "low"},
    {"prediction": {"type": "content", "content": "x"}},
)  # fmt: skip
ignored(
    "`modalities`, `audio`, `web_search_options`, `moderation`",
    {"modalities": ["text"]}, {"audio": None}, {"web_search_options": None}, {"moderation": None},
    refused={"modalities": ["audio"], "audio": {"voice": "a", "format": "wav"}, "web_search_options": {}},
)  # fmt: skip


@of(OPENAI, "`user`, `safety_identifier`")
async def _(site: Site) -> None:
    for field in ("user", "safety_identifier"):
        await site.api.chat(**{field: "joe"})
        assert site.api.rows[-1].user_hash not in (None, "joe")


@of(OPENAI, "`reasoning_effort`")
async def _(site: Site) -> None:
    await site.api.chat(reasoning_effort="none")
    options = site.api.engine.codec.options[-1]
    assert (options["reasoning_effort"], options["enable_thinking"]) == ("none", False)


@of(OPENAI, "`echo`, `prompt_logprobs`")
async def _(site: Site) -> None:
    answer = (await site.api.complete(echo=True, logprobs=1, max_tokens=0)).json()
    [choice] = answer["choices"]
    assert (choice["text"], answer["usage"]["completion_tokens"]) == ("a b", 0)
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
    assert (await site.api.complete(echo=True, stream=True)).is_success
    scored = await site.api.chat(prompt_logprobs=0)
    assert scored.json()["prompt_logprobs"][0] is None
    assert (await site.api.chat(prompt_logprobs=0, stream=True)).status_code == 400
    assert (await site.api.complete(prompt_logprobs=21)).status_code == 400


@of(OPENAI, "`continue_final_message`, `add_generation_prompt`")
async def _(site: Site) -> None:
    for fields, ending in (
        ({}, "answer"),
        ({"continue_final_message": True}, "continued"),
        ({"add_generation_prompt": False}, "nothing"),
    ):
        assert (await site.api.chat(**fields)).is_success
        assert site.api.engine.codec.endings[-1] == ending
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert (await site.api.chat(**both)).status_code == 400


@of(OPENAI, "`POST /tokenize`, `POST /detokenize`, `GET /tokenizer_info`")
async def _(site: Site) -> None:
    found = await site.post("/tokenize", prompt="a b", return_token_strs=True)
    assert (found["count"], found["token_strs"]) == (2, ["a", "b"])
    assert (await site.post("/detokenize", tokens=found["tokens"])) == {"prompt": "a b"}
    assert (await site.get("/tokenizer_info"))["eos_token"] == "<end>"
    assert (await site.post("/tokenize", 400))["error"]["param"] == "prompt"


@of(OPENAI, "`best_of`, `suffix`")
async def _(site: Site) -> None:
    assert (await site.api.complete(best_of=1, suffix="")).is_success
    for name, value in (("best_of", 2), ("suffix", "x")):
        assert (await site.api.complete(**{name: value})).json()["error"]["param"] == name


@of(OPENAI, "errors")
async def _(site: Site) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert (await site.post(path, 400))["error"]["type"] == "invalid_request_error"
    answer = await site.api.client.get("/v1/models", headers={"X-API-Key": "wrong"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await site.post("/v1/nothing", 404))["error"]["message"]


@of(OPENAI, "`POST /v1/embeddings`")
async def _(site: Site) -> None:
    body = {"model": "support-bot", "input": ["a", "b"], "dimensions": 2}
    assert (await site.post("/v1/embeddings", 400, **body))["error"]["code"] in site.how
    async with site.run(embedder()) as api:
        found = (await api.client.post("/v1/embeddings", json=body)).json()["data"]
    assert [len(each["embedding"]) for each in found] == [2, 2]


@of(OPENAI, "its other endpoints")
async def _(site: Site) -> None:
    assert (await site.post("/v1/images/generations", 404))["error"]["code"] == "not_found"


@of(OPENAI, "`Retry-After`, `x-should-retry`, `x-request-id`")
async def _(site: Site) -> None:
    async with site.run(ScriptedEngine(max_running=0)) as api:
        full = await api.chat()
    assert full.status_code == 429
    assert {"retry-after", "x-request-id"} <= full.headers.keys()
    async with serve(
        tiers=[Tier(name="standard", tokens_per_month=1)], limiter=Limiter()
    ) as server:
        used_up = await server.client.post(
            "/v1/completions", json={"model": "support-bot", "prompt": "a"}, headers=USER
        )
    assert (used_up.status_code, used_up.headers["x-should-retry"]) == (429, "false")


# --- OpenAI's Responses API

RESPONSES = "OpenAI's Responses API"
FRAMEWORKS = "Frameworks on the Responses API"


async def respond(site: Site, status: int = 200, **fields: Any) -> Any:
    return await site.post(
        "/v1/responses", status, **{"model": "support-bot", "input": "hi", **fields}
    )


@of(RESPONSES, "`POST /v1/responses`", "`usage`")
async def _(site: Site) -> None:
    answer = await respond(site)
    assert answer["output"][0]["content"][0]["text"] == SAID
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == 0


@of(
    RESPONSES,
    "`GET /v1/responses/{response_id}`, `DELETE /v1/responses/{response_id}`",
    "`GET /v1/responses/{response_id}/input_items`",
    "`store`, `previous_response_id`",
)
async def _(site: Site) -> None:
    store = keeping(site.api)
    first = await respond(site)
    path = f"/v1/responses/{first['id']}"
    assert await site.get(path) == first
    second = await respond(site, previous_response_id=first["id"], input="on")
    assert len(site.api.engine.codec.chats[-1]) == 3
    [item] = (await site.get(f"/v1/responses/{second['id']}/input_items"))["data"]
    assert item["content"][0]["text"] == "on"
    assert (await site.api.client.delete(path)).json()["deleted"]
    assert (await site.api.client.get(path)).status_code == 404
    error = (await respond(site, 400, previous_response_id=second["id"]))["error"]
    assert error["code"] == "previous_response_not_found"
    unkept = await respond(site, store=False)
    assert await store.find("web", [unkept["id"]]) == {}


@of(RESPONSES, "`input`")
async def _(site: Site) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "rain"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    hi = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    async with site.run(with_tools("Hello")) as api:
        other = Site(api, site.run, site.how, site.folder, site.set)
        keeping(api)
        await respond(other, input=[hi, thought, call, output])
        roles = [message["role"] for message in api.engine.codec.chats[-1]]
        assert roles == ["user", "assistant", "tool"]
        item = (await respond(other))["output"][0]["id"]
        await respond(other, input=[{"type": "item_reference", "id": item}, hi])
        for wrong in ([hi, call], [hi, output]):
            await respond(other, 400, input=wrong)
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]
    assert "as text" in (await respond(site, 400, input=image))["error"]["message"]


@of(RESPONSES, "`instructions`, `metadata`, `user`, `safety_identifier`")
async def _(site: Site) -> None:
    answer = await respond(site, instructions="Be brief", metadata={"a": "b"}, user="joe")
    assert site.api.engine.codec.chats[-1][0] == {"role": "system", "content": "Be brief"}
    assert answer["metadata"] == {"a": "b"}
    assert site.api.rows[-1].user_hash not in (None, "joe")


@of(RESPONSES, "`background`, `POST /v1/responses/{response_id}/cancel`")
async def _(site: Site) -> None:
    keeping(site.api)
    site.api.engine.token_seconds = 0.5
    begun = await respond(site, background=True)
    assert begun["status"] == "in_progress"
    path = f"/v1/responses/{begun['id']}"
    assert (await site.post(f"{path}/cancel"))["status"] == "cancelled"
    assert (await site.get(path))["status"] == "cancelled"


@of(RESPONSES, "`max_output_tokens`, `temperature`, `top_p`, `truncation`")
async def _(site: Site) -> None:
    answer = await respond(site, max_output_tokens=2, temperature=0.5, top_p=0.5)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    long = [{"role": "user", "content": "word " * 30} for _ in range(4)]
    await respond(site, 400, input=long)
    await respond(site, input=long, truncation="auto")
    assert len(site.api.engine.codec.chats[-1]) < 4


@of(RESPONSES, "`text.format`")
async def _(site: Site) -> None:
    for format_ in (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "name": "n", "schema": {}},
    ):
        await respond(site, text={"format": format_})
    assert len(site.api.engine.codec.constraints) == 2


@of(
    RESPONSES,
    "`tools`, `tool_choice`, `parallel_tool_calls`",
    "`reasoning`, reasoning items",
)
async def _(site: Site) -> None:
    tool = {"type": "function", "name": "f"}
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    async with site.run(with_tools("<think>", "hm", "</think>", call)) as api:
        other = Site(api, site.run, site.how, site.folder, site.set)
        answer = await respond(
            other, tools=[tool], parallel_tool_calls=False, reasoning={"effort": "low"}
        )
        assert api.engine.codec.options[-1]["reasoning_effort"] == "low"
        allowed = {"type": "allowed_tools", "mode": "auto", "tools": [tool]}
        await respond(other, tools=[tool, {**tool, "name": "g"}], tool_choice=allowed)
        assert len(api.engine.codec.tools[-1]) == 1
    assert [item["type"] for item in answer["output"]] == ["reasoning", "function_call"]
    assert answer["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert answer["output"][0]["summary"] == []


@of(RESPONSES, "`include`, `top_logprobs`")
async def _(site: Site) -> None:
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    answer = await respond(site, include=include, top_logprobs=2)
    [first, *_] = answer["output"][0]["content"][0]["logprobs"]
    assert (first["logprob"], len(first["top_logprobs"])) == (-0.5, 2)


@of(RESPONSES, "`stream`")
async def _(site: Site) -> None:
    asked = {"model": "support-bot", "input": "hi", "stream": True}
    text = (await site.api.client.post("/v1/responses", json=asked)).text
    names = re.findall("event: (.*)", text)
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.completed"


@of(
    RESPONSES,
    "`conversation`, `prompt`, tools that OpenAI's API runs, custom tools, images, files, audio",
)
async def _(site: Site) -> None:
    for fields in (
        {"conversation": "conv_1"},
        {"prompt": {"id": "p"}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "custom", "name": "f"}]},
    ):
        assert (await respond(site, 400, **fields))["error"]["param"]
    for type_ in ("input_image", "input_file", "input_audio"):
        content = [{"type": type_}]
        await respond(site, 400, input=[{"role": "user", "content": content}])


@of(RESPONSES, "`POST /v1/responses/compact`, `POST /v1/responses/input_tokens` and the WebSocket")
async def _(site: Site) -> None:
    for name in ("compact", "input_tokens"):
        await site.post(f"/v1/responses/{name}", 405)


for framework in (
    "openai-agents 0.24.0 with openai 3.57.0, `OpenAIResponsesModel`, its default",
    "langchain-openai 1.7.3 with langchain-core 1.7.2, `ChatOpenAI(use_responses_api=True)`",
    'AI SDK 6.0.326 with @ai-sdk/openai 3.0.141, `openai("…")`, its default',
):
    untried(FRAMEWORKS, framework, "tried by hand: it is no dependency of the tests")


# --- 000: predict

PREDICTED = {
    "generated_text",
    "prompt",
    "tokens_generated",
    "processing_time",
    "model_name",
    "model_version",
    "timestamp",
}


@of("000", "`POST /predict`", "`prompt`")
async def _(site: Site) -> None:
    answer = await site.post("/predict", prompt="a b")
    assert (answer["generated_text"], answer["prompt"], answer["tokens_generated"]) == (
        SAID,
        "a b",
        3,
    )
    assert (await site.post("/predict", 400, prompt=""))["details"]["field"] == "prompt"


@of("000", "`POST /predict/batch`", "`prompts`")
async def _(site: Site) -> None:
    answers = await site.post("/predict/batch", prompts=["a", "b", "c"])
    assert [answer["prompt"] for answer in answers] == ["a", "b", "c"]
    assert len(await site.post("/predict/batch", prompts=["a"] * 128)) == 128
    await site.post("/predict/batch", 400, prompts=["a"] * 129)


@of(
    "000",
    "`GET /health`",
    "`status`, `api_status`, `model_status`, `gpu_status`, `timestamp`, `uptime_seconds`",
)
async def _(site: Site) -> None:
    found = await site.get("/health")
    assert (found["status"], found["api_status"], found["model_status"]) == (
        "healthy",
        "running",
        "loaded",
    )
    assert {"gpu_status", "timestamp", "uptime_seconds"} <= found.keys()


@of("000", "`GET /metrics`")
@of("002", "`http_requests_total`, `tokens_generated_total`, `http_request_duration_seconds`")
@of(
    "000",
    "`api_requests_total`, `api_request_duration_seconds`, `gpu_memory_usage_bytes`, `tokens_per_second`, "
    "`model_loaded`",
)
@of("001", "requests by route and status, latency histograms, errors by type")
async def _(site: Site) -> None:
    site.api.engine.gpu_memory_bytes = 1
    await site.post("/predict", prompt="a b")
    await site.post("/predict", 400)
    text = await site.get("/metrics")
    for name in (
        'http_requests_total{endpoint="/predict",method="POST",status="200"} 1.0', 'tokens_generated_total{',
        'http_request_duration_seconds_sum{endpoint="/predict"', 'api_requests_total{endpoint="/predict",status="400"}',
        'api_request_duration_seconds_count{endpoint="/predict"}', "gpu_memory_usage_bytes 1.0", "tokens_per_second ",
        "model_loaded 1.0", 'api_errors_total{type="validation_error"} 1.0',
    ):  # fmt: skip
        assert name in text, name


@of("000", "`GET /info`")
async def _(site: Site) -> None:
    answer = (await site.api.client.get("/info", headers={"X-API-Key": ""})).json()
    assert (answer["name"], answer["version"], answer["source"]) == (
        "support-bot",
        "3",
        "models:/support-bot/3",
    )
    assert answer["chat"] is not None


@of("000", "`GET /status`")
@of("002", "`GET /status`")
@of("003", "`GET /status`")
async def _(site: Site) -> None:
    answer = (await site.api.client.get("/status", headers={"X-API-Key": ""})).json()
    assert (answer["status"], answer["model_name"]) == ("cpu: model loaded on CPU", "support-bot")
    async with serve(on_gpu=True) as server:
        assert (await server.client.get("/status")).json()["status"] == "cuda: model loaded on GPU"
    async with site.run(server=ServerConfig(lazy_load=True)) as api:
        assert "None" not in (await api.client.get("/status")).json()["status"]


@of("000", "`GET /docs`, `GET /redoc`, `GET /openapi.json`")
async def _(site: Site) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert await site.get(path)


@of("000", "`max_length`")
async def _(site: Site) -> None:
    assert (await site.post("/predict", prompt="a", max_length=1))["generated_text"] == "Hello"
    async with site.run(ScriptedEngine(max_model_length=4000)) as api:
        await api.client.post("/predict", json={"prompt": "a"})
        await api.client.post("/predict", json={"prompt": "a", "max_length": 3000})
    assert [request.sampling.max_tokens for request in api.engine.requests] == [100, 3000]


@of("000", "`temperature`", "`top_p`")
async def _(site: Site) -> None:
    await site.post("/predict", prompt="a")
    sampling = site.api.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.7, 0.95)
    for name, most in (("temperature", 2), ("top_p", 1)):
        await site.post("/predict", prompt="a", **{name: most})
        await site.post("/predict", 400, prompt="a", **{name: most + 0.1})
        await site.post("/predict", 400, prompt="a", **{name: -0.1})


@of("000", "`stop_tokens`")
async def _(site: Site) -> None:
    assert (await site.post("/predict", prompt="a", stop_tokens=["there"]))[
        "generated_text"
    ] == "Hello "
    await site.post("/predict", prompt="a", stop_tokens=list("abcdefghijklmnop"))
    await site.post("/predict", 400, prompt="a", stop_tokens=list("abcdefghijklmnopq"))


@of(
    "000",
    "`generated_text`, `prompt`, `tokens_generated`, `processing_time`, `model_name`, `model_version`, `timestamp`",
)
async def _(site: Site) -> None:
    answer = await site.post("/predict", prompt="a")
    assert answer.keys() == PREDICTED
    assert (answer["model_name"], answer["model_version"]) == ("support-bot", "3")


@of("000", "`error`, `message`, `details`, `timestamp`, `request_id`")
async def _(site: Site) -> None:
    answer = await site.post("/predict", 400)
    assert answer.keys() == {"error", "message", "details", "timestamp", "request_id"}
    assert UUID(answer["request_id"])
    own = await site.api.client.post("/predict", json={}, headers={"X-Request-ID": "mine"})
    assert own.json()["request_id"] == "mine"


@of(
    "000",
    "`validation_error` 400, `unauthorized` 401, `payload_too_large` 413, `service_unavailable` 503, "
    "`internal_server_error` 500",
)
async def _(site: Site) -> None:
    assert (await site.post("/predict", 400))["error"] == "validation_error"
    wrong = await site.api.client.post("/predict", json={}, headers={"X-API-Key": "wrong"})
    assert (wrong.status_code, wrong.json()["error"]) == (401, "unauthorized")
    assert (await site.post("/predict", 413, prompt="a" * (2 << 20)))[
        "error"
    ] == "payload_too_large"
    site.api.server.serving.begin_drain()
    await site.api.server.serving.drain(0)
    assert (await site.post("/predict", 503, prompt="a"))["error"] == "service_unavailable"
    async with site.run() as api:
        api.server.serving.pipeline.codec = None
        broken = await api.client.post("/predict", json={"prompt": "a"})
    assert (broken.status_code, broken.json()["error"]) == (500, "internal_server_error")


@of("000", "`Authorization: Bearer`")
@of("001", "`X-API-Key`")
@of("003", "`x-API-Key`")
@of("004", "`x-api-key`")
async def _(site: Site) -> None:
    for name, value in (
        ("Authorization", f"Bearer {KEY}"),
        ("X-API-Key", KEY),
        ("x-API-Key", KEY),
        ("x-api-key", KEY),
    ):
        async with site.run(headers={name: value}) as api:
            for path in ("/predict", "/v1/generate", "/generate"):
                assert (await api.client.post(path, json={"prompt": "a"})).is_success


@of(
    "000",
    "`API_KEY`, `MODEL_NAME`, `MLFLOW_TRACKING_URI`, `API_HOST`, `API_PORT`, `LOG_LEVEL`, `DEBUG`",
)
@of("004", "the key from the environment")
async def _(site: Site) -> None:
    names = {"API_KEY": KEY, "MODEL_NAME": "bot", "MLFLOW_TRACKING_URI": "http://x", "API_HOST": "::1", "API_PORT": "9",
             "LOG_LEVEL": "warning"}  # fmt: skip
    found = site.start("engine: {device: cpu}", **names)
    assert (found.api_key, found.host, found.port, found.log_level) == (KEY, "::1", 9, "WARNING")
    assert (found.config.model.name, found.config.model.uri) == (
        "bot",
        "models:/bot/Production|latest",
    )
    assert site.start("engine: {device: cpu}", DEBUG="true").log_level == "DEBUG"


@of("000", "`API_WORKERS`")
async def _(site: Site) -> None:
    site.start(API_WORKERS="1")
    with pytest.raises(SettingsInvalid, match="run more replicas"):
        site.start(API_WORKERS="2")


untried("000", "`CUDA_VISIBLE_DEVICES`", "CUDA reads it, and there is no GPU here")
renamed(
    "000",
    "`api.host`, `api.port`, `api.workers`",
    ("api: {host: h}", "API_HOST"),
    ("api: {port: 1}", "API_PORT"),
)
renamed(
    "000",
    "`model.max_tokens`",
    ("model: {name: m, path: /m, max_tokens: 5}", "engine.maxModelLength"),
)
renamed(
    "000",
    "`model.batch_size`",
    ("model: {name: m, path: /m, batch_size: 5}", "engine.maxBatchSize"),
)
renamed(
    "000", "`mlflow.tracking_uri`, `mlflow.model_name`",
    ("mlflow: {tracking_uri: x}", "model.mlflow.trackingUri"), ("mlflow: {model_name: x}", "model.mlflow.name"),
)  # fmt: skip
renamed(
    "000", "`mlflow.model_stage`", ("mlflow: {model_stage: Production}", "models:/name/Production")
)


@of("000", "`model.default_max_length`")
async def _(site: Site) -> None:
    with pytest.raises(SettingsInvalid, match="max_length"):
        site.start("model: {name: m, path: /m, default_max_length: 7}")
    async with site.run(ScriptedEngine(max_model_length=400)) as api:
        await api.client.post("/predict", json={"prompt": "a"})
    assert api.engine.requests[0].sampling.max_tokens == 100


@of("000", "CORS, trusted hosts, request size limit")
async def _(site: Site) -> None:
    settings = ServerConfig(
        cors_origins=("http://a",), trusted_hosts=("test",), max_request_bytes=1024
    )
    async with site.run(server=settings) as api:
        seen = await api.client.get("/info", headers={"Origin": "http://a"})
        assert seen.headers["access-control-allow-origin"] == "http://a"
        assert (await api.client.get("/info", headers={"Host": "evil"})).status_code == 400
        assert (await api.client.post("/predict", json={"prompt": "a" * 2000})).status_code == 413


@of("000", "LoRA adapters")
async def _(site: Site) -> None:
    site.api.engine.adapters = ("legal",)
    await site.post("/v1/generate", prompt="a", model="support-bot:legal")
    await site.post("/generate", prompt="a", model_name="support-bot:legal")
    assert [request.adapter for request in site.api.engine.requests] == ["legal", "legal"]


@of(
    "000",
    "`start_api.py --log-level`, `python -m serving.api.main`, `uvicorn serving.api.main:app`",
)
@of("001", "`uv run serve`, `scripts/`")
async def _(site: Site) -> None:
    for verb in re.findall(r"`llm-runtime (\w+)`", site.how):
        assert CliRunner().invoke(cli, [verb, "--help"]).exit_code == 0
    assert site.start(LOG_LEVEL="debug").log_level == "DEBUG"


@of("000", "`api.log`")
@of("003", "rotating log files")
async def _(site: Site) -> None:
    server = site.start(
        "{model: {name: m, path: /m}, server: {logFile: f, logFileBytes: 5000, logFileBackups: 2}}"
    ).config.server
    assert (server.log_file, server.log_file_bytes, server.log_file_backups) == ("f", 5000, 2)


in_the_repository(
    "000", "Grafana dashboard, compose file", "manifests/compose.yaml", "manifests/compose"
)
in_the_repository("004", "`docker compose up`, port 8000", "manifests/compose.yaml")

# --- 001: generate


@of(
    "001",
    "`POST /v1/generate`",
    "`prompt`, `max_new_tokens`, `temperature`, `top_p`, `top_k`, `stop`",
)
async def _(site: Site) -> None:
    fields = {"temperature": 0.5, "top_p": 0.5, "top_k": 3}
    answer = await site.post("/v1/generate", prompt="a", max_new_tokens=2, stop=["!"], **fields)
    assert answer["output"] == "Hello there"
    sampling = site.api.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.stop) == (2, ("!",))
    assert {name: getattr(sampling, name) for name in fields} == fields


@of("001", "`POST /v1/stream`")
async def _(site: Site) -> None:
    answer = await site.api.client.post("/v1/stream", json={"prompt": "a"})
    *texts, last, done = events(answer.text)
    assert "".join(event["text"] for event in texts) == SAID
    assert (last["finish_reason"], done) == ("stop", "[DONE]")


@of("001", "`GET /health`, `GET /readyz`, `GET /metrics`")
async def _(site: Site) -> None:
    async with site.run(server=ServerConfig(lazy_load=True)) as api:
        for path in ("/health", "/readyz", "/metrics"):
            assert (await api.client.get(path)).status_code == 200
        assert api.server.serving.loaded is None


@of("001", "`model`, `output`, `cached`")
@of(
    "002",
    "`POST /v1/generate`",
    "`generated_text`, `prompt`, `model`, `tokens_generated`, `cached`",
)
async def _(site: Site) -> None:
    answer = await site.post("/v1/generate", prompt="a", max_tokens=8)
    assert answer == {
        "model": "support-bot", "output": SAID, "generated_text": SAID, "prompt": "a", "tokens_generated": 3,
        "cached": False,
    }  # fmt: skip
    await site.post("/v1/generate", 400, prompt="a", max_tokens=8, max_new_tokens=9)


@of("001", "equal prompts from the cache")
@of("002", "equal prompts from the cache")
async def _(site: Site) -> None:
    for sampled in (False, True):
        kept = CompletionCacheConfig(sampled=sampled)
        async with site.run(server=ServerConfig(completion_cache=kept)) as api:
            api.server.serving.pipeline.cache = CompletionCache(kept)
            for temperature, cached in ((0, True), (0.7, sampled)):
                body = {"prompt": "a", "temperature": temperature}
                found = [
                    (await api.client.post("/v1/generate", json=body)).json()["cached"]
                    for _ in range(2)
                ]
                assert found == [False, cached]


@of("001", "401, 403")
async def _(site: Site) -> None:
    for key, status in (("", 401), ("wrong", 401), (SUSPENDED, 403), (EXPIRED, 403)):
        async with site.run(headers={"X-API-Key": key} if key else {}) as api:
            assert (
                await api.client.post("/v1/generate", json={"prompt": "a"})
            ).status_code == status


async def limited(tier: Tier, first: int, then: int) -> None:
    async with serve(tiers=[tier], limiter=Limiter()) as server:
        for status in (first, then):
            assert (
                await server.client.post("/v1/generate", json={"prompt": "a"}, headers=USER)
            ).status_code == status


@of("001", "roles, monthly quotas")
async def _(site: Site) -> None:
    await limited(Tier(name="standard", requests_per_month=1), 200, 429)
    await limited(Tier(name="standard", tokens_per_month=1), 429, 429)


@of("001", "rate and concurrency limits")
async def _(site: Site) -> None:
    await limited(Tier(name="standard", requests_per_minute=1), 200, 429)
    await limited(Tier(name="standard", tokens_per_minute=1), 429, 429)
    assert await most_at_once(Tier(name="standard", max_concurrent=2), 4) == 2


async def most_at_once(tier: Tier, asked: int) -> int:
    """Requests that run together of those `asked` at the same time; all are answered."""
    most = 0
    async with serve(tiers=[tier], limiter=Limiter()) as server:
        [engine] = server.models.engines
        engine.token_seconds = 0.05
        posts = [
            server.client.post("/generate", json={"prompt": f"a {n}"}, headers=USER)
            for n in range(asked)
        ]
        running = asyncio.gather(*posts)
        while not running.done():
            most = max(most, len(engine.running))
            await asyncio.sleep(0.005)
        assert [answer.status_code for answer in await running] == [200] * asked
    return most


@of("002", "rate limit by IP or key")
async def _(site: Site) -> None:
    async with serve(
        tiers=[Tier(name="standard", requests_per_minute=1)], limiter=Limiter(), disabled=True
    ) as server:
        for status in (200, 429):
            assert (
                await server.client.post("/v1/generate", json={"prompt": "a"})
            ).status_code == status


@of("004", "five concurrent requests, the rest wait")
async def _(site: Site) -> None:
    assert await most_at_once(Tier(name="standard"), 8) == 5


@of("001", "`InferenceLog`, `CompletionCache`, `ApiKey`, `RoleTable`")
async def _(site: Site) -> None:
    named = set(re.findall(r"`(\w+)`", site.how))
    assert named
    assert named <= metadata.tables.keys()


@of("001", "`DATABASE_URL`")
async def _(site: Site) -> None:
    for url in ("sqlite:///a.db", "postgresql://u@h/d"):
        assert site.start(DATABASE_URL=url).storage.url == url


@of("001", "Redis")
async def _(site: Site) -> None:
    assert site.start(REDIS_URL="redis://h:1/0").redis_url == "redis://h:1/0"


@of("001", "request id, method, path, status, latency in logs")
@of(
    "002",
    "`timestamp`, `level`, `logger`, `message`, `method`, `status_code`, `route`, `latency_ms` in logs",
)
async def _(site: Site) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonFormatter().format(record))  # type: ignore[method-assign]
    access = logging.getLogger("llm_runtime.access")
    level = access.level
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    try:
        await site.get("/v1/models/support-bot")
    finally:
        access.removeHandler(handler)
        access.setLevel(level)
    for word in (
        '"timestamp"',
        '"level"',
        '"logger"',
        '"message"',
        '"method": "GET"',
        '"status_code": 200',
        '"route": "/v1/models/{model_id:path}"',
        '"latency_ms"',
        '"request_id"',
    ):
        assert word.replace(" ", "") in lines[0].replace(" ", ""), (word, lines[0])


@of("001", "lazy load")
@of("004", "lazy loading on the first request")
async def _(site: Site) -> None:
    async with site.run(server=ServerConfig(lazy_load=True)) as api:
        assert api.server.serving.loaded is None
        assert (await api.client.post("/v1/generate", json={"prompt": "a"})).json()[
            "output"
        ] == SAID


@of("001", "`mps`")
async def _(site: Site) -> None:
    with pytest.raises(SettingsInvalid, match="'cpu' or 'cuda'"):
        site.start("{model: {name: m, path: /m}, engine: {device: mps}}")


@of("001", "`providers`")
async def _(site: Site) -> None:
    with pytest.raises(SettingsInvalid, match="providers: unknown key"):
        site.start("{model: {name: m, path: /m}, providers: {}}")


# --- 002: generate and chat


@of("002", "`GET /health`")
async def _(site: Site) -> None:
    found = await site.get("/health")
    assert (found["status"], found["model_loaded"], found["model_name"]) == (
        "healthy",
        True,
        "support-bot",
    )


@of("002", "`POST /v1/chat`", "`message`, `model`, `tokens_generated`, `cached`")
async def _(site: Site) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    answer = await site.post("/v1/chat", **body)
    assert answer["message"]["content"] == SAID
    assert (answer["model"], answer["tokens_generated"], answer["cached"]) == (
        "support-bot",
        3,
        False,
    )
    streamed = events((await site.api.client.post("/v1/chat", json={**body, "stream": True})).text)
    assert "".join(event["text"] for event in streamed[:-1]) == SAID


@of("002", "`messages`, `session_id`, `max_tokens`, `temperature`, `stream`")
async def _(site: Site) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "session_id": "s",
        "max_tokens": 8,
        "temperature": 0.5,
    }
    site.api.put(sessions=Remembered())
    for _ in range(2):
        await site.post("/v1/chat", **body)
    assert [len(chat) for chat in site.api.engine.codec.chats] == [1, 3]
    assert site.api.engine.requests[-1].sampling.temperature == 0.5


@of("002", "`X-Process-Time`")
async def _(site: Site) -> None:
    assert float((await site.api.client.get("/info")).headers["x-process-time"]) >= 0


@of("002", "`HUGGINGFACE_TOKEN`")
async def _(site: Site) -> None:
    token = site.start(HUGGINGFACE_TOKEN="hf_x").environment.huggingface_token
    assert token is not None
    assert token.get_secret_value() == "hf_x"


@of("002", "`config.yml`")
async def _(site: Site) -> None:
    (site.folder / "config.yml").write_text(
        "model: {name: team/bot, source: hub}\ncache: {size: 7}\n"
    )
    found = CliRunner().invoke(cli, ["settings", "convert", str(site.folder / "config.yml")])
    assert site.start(found.stdout).config.server.completion_cache.entries == 7


@of("002", "`app.name`")
async def _(site: Site) -> None:
    with pytest.raises(SettingsInvalid, match=r"app\.name: is now model\.name"):
        site.start("{model: {name: m, path: /m}, app: {name: n}}")


@of("002", "`model.name` (`MODEL__NAME`)")
async def _(site: Site) -> None:
    assert site.start("model: {name: n, path: /m}").config.model.name == "n"
    assert site.start(MODEL__NAME="other").config.model.name == "other"


renamed(
    "002", "`app.host`, `app.port`", ("app: {host: h}", "API_HOST"), ("app: {port: 1}", "API_PORT")
)
renamed(
    "002", "`model.source`, `model.device`, `model.max_tokens`, `model.temperature`",
    ("model: {name: m, path: /m, source: hub}", "hf://org/name@revision"),
    ("model: {name: m, path: /m, source: mlflow}", "models:/name/Production"),
    ("model: {name: m, path: /m, device: cpu}", "engine.device"),
    ("model: {name: m, path: /m, max_tokens: 9}", "engine.maxModelLength"),
    ("model: {name: m, path: /m, temperature: 1}", "temperature"),
)  # fmt: skip
renamed("002", "`security.api_key` (`SECURITY__API_KEY`)", ("security: {api_key: k}", "API_KEY"))
renamed(
    "002",
    "`security.max_prompt_chars`",
    ("security: {max_prompt_chars: 9}", "server.maxPromptCharacters"),
)
renamed(
    "002", "`rate_limit.enabled`, `rate_limit.requests_per_minute`, `RATE_LIMIT__BURST_SIZE`",
    ("rate_limit: {enabled: true}", "tiers[].requestsPerMinute"),
    ("rate_limit: {requests_per_minute: 1}", "tiers[].requestsPerMinute"),
    ("rate_limit: {burst_size: 1}", "tiers[].requestsPerMinute"),
)  # fmt: skip
renamed(
    "002", "`cache.enabled`, `cache.size`, `cache.ttl_seconds`",
    ("cache: {enabled: true}", "server.completionCache.enabled"),
    ("cache: {size: 1}", "server.completionCache.entries"),
    ("cache: {ttl_seconds: 1}", "server.completionCache.ttlSeconds"),
)  # fmt: skip
renamed(
    "002", "`chat_history.enabled`, `chat_history.ttl_seconds`",
    ("chat_history: {enabled: true}", "server.sessions.enabled"),
    ("chat_history: {ttl_seconds: 1}", "server.sessions.ttlSeconds"),
)  # fmt: skip


@of("002", "PII filter, output sanitising")
async def _(site: Site) -> None:
    masked = ServerConfig(filters=FiltersConfig(pii="Mask", output="Mask"))
    async with site.run(ScriptedEngine(["to a@b.example"]), server=masked) as api:
        answer = (await api.client.post("/v1/generate", json={"prompt": "mail c@d.example"})).json()
    assert answer["output"] == "to [EMAIL]"
    assert "[EMAIL]" in api.engine.codec.words.values()


@of("002", "system prompt file")
async def _(site: Site) -> None:
    async with site.run(system_prompt="Be kind.") as api:
        await api.chat()
    assert api.engine.codec.chats[0][0] == {"role": "system", "content": "Be kind."}


@of(
    "002",
    "`make run`, `make test`, `make lint`, `make format`, `make type-check`, `make check-all`, "
    "`make build-docker`, `make run-docker`, `make logs`",
)
async def _(site: Site) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {
        "run",
        "test",
        "lint",
        "format",
        "type-check",
        "check-all",
        "build-docker",
        "run-docker",
        "logs",
    } <= targets


# --- 003: completions with log probabilities


@of(
    "003",
    "`POST /generate`",
    "`success`, `request_time`, `completions`, `text`, `tokens`, `logprob`",
)
async def _(site: Site) -> None:
    answer = await site.post("/generate", prompt="Hello world", max_new_tokens=5)
    assert (answer["success"], answer["generated_text"]) == (True, SAID)
    assert answer["request_time"] >= 0
    assert answer["completions"][0]["text"] == SAID
    assert answer["completions"][0]["tokens"][0] == {"text": "Hello", "logprob": -0.5}
    async with site.run(server=ServerConfig(filters=FiltersConfig(output="Mask"))) as api:
        masked = (
            await api.client.post("/generate", json={"prompt": "Hello world", "max_new_tokens": 5})
        ).json()
    assert masked["completions"] == [{"text": SAID, "tokens": []}]
    assert masked["notice"]


@of("003", "`model_name`")
async def _(site: Site) -> None:
    await site.post("/generate", prompt="a", model_name="support-bot")
    assert (await site.post("/generate", 404, prompt="a", model_name="x"))["details"][
        "field"
    ] == "model_name"


@of(
    "003",
    "`prompt`, `parameters`, `temperature`, `max_new_tokens`, `top_p`, `num_return_sequences`, `stop_sequences`",
)
async def _(site: Site) -> None:
    fields = {"temperature": 0.5, "top_p": 0.5}
    parameters = {**fields, "max_new_tokens": 7, "num_return_sequences": 2, "stop_sequences": ["!"]}
    answer = await site.post("/generate", prompt="a", parameters=parameters)
    assert [each["text"] for each in answer["completions"]] == ["Hello there"] * 2
    sampling = site.api.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (
        0.5,
        0.5,
        7,
        ("!",),
    )


@of("003", "`POST /load_model`, `POST /unload_model`")
async def _(site: Site) -> None:
    async with serve() as server:
        assert (
            await server.post("/load_model", USER, model_name="/models/other")
        ).status_code == 403
        assert (await server.post("/unload_model")).status_code == 200
        assert (
            await server.post("/load_model", model_name="new", path="/models/new")
        ).status_code == 200
        assert (await server.says())[1] == "new"
    async with serve(managed=False) as server:
        assert (await server.post("/unload_model")).status_code == 404


@of("003", "`model_name: meta-llama/Llama-3-8b`, `hf_token`")
async def _(site: Site) -> None:
    commit = "0123456789" * 4
    async with serve() as server:
        body = {"model_name": f"meta-llama/Llama-3-8b@{commit}", "hf_token": "hf_x"}
        assert (await server.post("/load_model", **body)).status_code == 200
        assert server.models.tokens == ["hf_x"]
        assert server.models.asked[0].model.uri == f"hf://meta-llama/Llama-3-8b@{commit}"


@of("003", "`device`")
async def _(site: Site) -> None:
    async with serve() as server:
        body = {"model_name": "new", "path": "/models/new"}
        assert (await server.post("/load_model", **body, device="cpu")).status_code == 200
        assert (await server.post("/load_model", **body, device="cuda")).status_code == 400
        await server.post("/unload_model")
        assert (await server.post("/load_model", **body, device="cuda")).status_code == 200


@of("003", "`POST /generate_apikey`")
async def _(site: Site) -> None:
    async with serve(f"sqlite:///{site.folder}/keys.db") as server:
        assert (await server.post("/generate_apikey", USER, username="joe")).status_code == 403
        made = (await server.post("/generate_apikey", ADMIN, username="joe")).json()
        assert made["username"] == "joe"
        assert (await server.says({"X-API-Key": made["api_key"]}))[0] == 200


@of("003", "`apikey_store.json`")
async def _(site: Site) -> None:
    assert re.findall(r"`(\w+)`", site.how) == ["api_keys"]
    assert "digest" in metadata.tables["api_keys"].columns


untried("003", "Power9", "there is no such machine here")

# --- 004: one endpoint in a container


@of("004", "`POST /generate`", "`generated_text`")
async def _(site: Site) -> None:
    answer = await site.post("/generate", prompt="a", max_new_tokens=1)
    assert answer["generated_text"] == "Hello"


@of("004", '`GET /health` with `{"status":"ok"}`')
async def _(site: Site) -> None:
    assert (await site.api.client.get("/livez")).text == '{"status":"ok"}'
