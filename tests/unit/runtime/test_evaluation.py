"""What programs that evaluate models ask for: echoed prompts, their log probabilities, and tokens."""

from typing import Any

import pytest

from fakes import FakeCodec, FakeText, ScriptedEngine, token_id
from harness import Harness, chat_body, events
from llm_runtime.cache.answer import Answer, AnswerChoice, from_json, to_json
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.contract import CompletionCacheConfig, FiltersConfig, ServerConfig, Tier
from llm_runtime.limits import Limiter
from llm_runtime.request import TokenEvent
from unit.runtime.test_manage import USER, serve
from unit.runtime.tools.templates import QWEN

WHOLE = {
    "tokens": ["a", "b", "Hello", " there", "!"],
    "token_logprobs": [None, -0.25, -0.5, -0.5, -0.5],
    "top_logprobs": [None, {"<0>": -1.0}, {"t0": -1.0}, {"t0": -1.0}, {"t0": -1.0}],
    "text_offset": [0, 1, 3, 8, 14],
}


async def completed(api: Harness, **fields: Any) -> dict[str, Any]:
    answer = await api.complete(**fields)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    return dict(choice)


async def test_an_echoed_prompt_stands_before_its_answer(api: Harness) -> None:
    choice = await completed(api, echo=True)
    assert (choice["text"], choice["logprobs"]) == ("a bHello there!", None)
    assert api.engine.requests[0].sampling.prompt_logprobs is None


async def test_echoed_log_probabilities_are_lists_of_prompt_and_answer(api: Harness) -> None:
    choice = await completed(api, echo=True, logprobs=1)
    assert choice["logprobs"] == WHOLE
    assert "prompt_logprobs" not in choice


async def test_nothing_but_the_prompt_comes_with_max_tokens_0(api: Harness) -> None:
    answer = (await api.complete(echo=True, logprobs=1, max_tokens=0)).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a b", "length")
    assert choice["logprobs"] == {name: values[:2] for name, values in WHOLE.items()}
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 0)
    assert (api.rows[-1].prompt_tokens, api.rows[-1].completion_tokens) == (2, 0)


async def test_a_prompt_may_fill_the_models_length_if_nothing_is_generated(api: Harness) -> None:
    prompt = [5] * 64
    assert (await api.complete(prompt=prompt, echo=True, max_tokens=0)).is_success
    assert (await api.complete(prompt=prompt, echo=True)).status_code == 400
    assert (await api.complete(prompt="a " * 64, echo=True, max_tokens=0)).is_success


async def test_several_prompts_of_tokens_each_have_their_own(api: Harness) -> None:
    """As lm-evaluation-harness sends them."""
    asked = {"prompt": [[7, 8, 9], [5]], "echo": True, "logprobs": 1, "max_tokens": 1, "seed": 1234}
    choices = (await api.complete(**asked)).json()["choices"]
    assert [choice["logprobs"]["token_logprobs"] for choice in choices] == [
        [None, -0.25, -0.25, -0.5],
        [None, -0.5],
    ]
    assert choices[0]["text"] == "<7> <8> <9>Hello"


async def test_streamed_choices_each_begin_with_the_prompt(api: Harness) -> None:
    chunks = events((await api.complete(echo=True, logprobs=1, n=2, stream=True)).text)[:-1]
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [choice["text"] for choice in own] == ["a b", "Hello", " there", "!"]
        for name, values in WHOLE.items():
            assert [value for choice in own for value in choice["logprobs"][name]] == values
    plain = events((await api.complete(echo=True, stream=True)).text)[:-1]
    assert [chunk["choices"][0]["text"] for chunk in plain] == ["a b", "Hello", " there", "!"]


class HidingText(FakeText):
    def bytes_of(self, token_id: int) -> bytes:
        return self.push(token_id).encode()

    def push(self, token_id: int) -> str:
        return super().push(token_id).replace("<end>", "")


class HidingCodec(FakeCodec):
    """Has a special token, `<end>`, which is in no text."""

    def detokenizer(self, *_: Any) -> FakeText:
        return HidingText(self)


async def test_every_token_has_an_entry_if_the_prompt_is_echoed(run: Any) -> None:
    """Whoever counts tokens from the end would take the prompt's for the answer's."""
    async with run(ScriptedEngine(["Hi", "<end>"], codec=HidingCodec())) as api:
        echoed = (await completed(api, prompt="<end> a", echo=True, logprobs=0))["logprobs"]
        plain = (await completed(api, logprobs=0))["logprobs"]
    assert echoed["tokens"] == ["<end>", "a", "Hi", "<end>"]
    assert echoed["text_offset"] == [0, 0, 7, 9]
    assert plain["tokens"] == ["Hi"]


async def test_prompt_logprobs_have_vllms_form(api: Harness) -> None:
    api.engine.codec.words |= {0: "t0", 1: "t1"}
    expected = [
        None,
        {
            str(token_id("b")): {"logprob": -0.25, "rank": 2, "decoded_token": "b"},
            "0": {"logprob": -1.0, "rank": 1, "decoded_token": "t0"},
            "1": {"logprob": -2.0, "rank": 2, "decoded_token": "t1"},
        },
    ]
    choice = await completed(api, prompt_logprobs=2, max_tokens=0)
    assert (choice["prompt_logprobs"], choice["text"]) == (expected, "")
    both = await completed(api, prompt_logprobs=2, echo=True, logprobs=1)
    assert (both["prompt_logprobs"], both["logprobs"]) == (
        expected,
        {**WHOLE, "top_logprobs": [None, {"t0": -1.0}, *WHOLE["top_logprobs"][2:]]},
    )
    chat = (await api.chat(prompt_logprobs=0, n=2)).json()
    assert [len(entry or ()) for entry in chat["prompt_logprobs"]] == [0, 1, 1]


async def test_equal_requests_share_an_answer_and_others_do_not(api: Harness) -> None:
    cache = CompletionCache(CompletionCacheConfig())
    api.server.serving.pipeline.cache = cache
    asked: dict[str, Any] = {"temperature": 0, "echo": True, "logprobs": 1, "prompt_logprobs": 1}
    first = await completed(api, **asked)
    assert await completed(api, **asked) == first
    assert len(api.engine.requests) == 1
    for fields in ({"echo": False}, {"prompt_logprobs": 2}, {"add_special_tokens": False}):
        await completed(api, **asked | fields)
    assert len(api.engine.requests) == 4
    scored = {"temperature": 0, "prompt_logprobs": 1, "max_tokens": 0}
    assert await completed(api, **scored) == await completed(api, **scored)
    assert cache.hits == 2


async def test_kept_answers_keep_the_prompts_log_probabilities(api: Harness) -> None:
    await api.complete(prompt_logprobs=2, prompt="a b c")
    [request] = api.engine.requests
    scores = (await anext(aiter(ScriptedEngine().generate(request)))).prompt_logprobs
    assert scores
    for events_ in (
        (TokenEvent(None, "x", prompt_logprobs=scores),),
        (TokenEvent(5, "x", stopped_by="y"),),
    ):
        answer = Answer(3, (AnswerChoice(events_, 1),))
        assert from_json(to_json(answer)) == answer
    assert (
        Answer(3, (AnswerChoice((TokenEvent(None, "x", prompt_logprobs=scores),), 1),)).size > 600
    )


@pytest.mark.parametrize("field", ["echo", "prompt_logprobs"])
async def test_nothing_is_shown_that_the_filters_mask(run: Any, field: str) -> None:
    masked = ServerConfig(filters=FiltersConfig(output="Mask"))
    async with run(server=masked) as api:
        refused = await api.complete(**{field: True if field == "echo" else 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


async def test_an_echo_of_what_a_filter_masked_is_masked(run: Any) -> None:
    async with run(server=ServerConfig(filters=FiltersConfig(pii="Mask"))) as api:
        choice = await completed(api, prompt="mail c@d.example", echo=True)
    assert choice["text"] == "mail [EMAIL]Hello there!"


# --- conversations that go on

SAID = [*chat_body()["messages"], {"role": "assistant", "content": "Well <think>hm"}]


async def test_an_answer_continues_the_last_message(run: Any) -> None:
    thinks = FakeCodec(QWEN + "{# <think> </think> #}")
    async with run(ScriptedEngine(["hm</think>", "so"], codec=thinks)) as api:
        answer = (await api.chat(messages=SAID, continue_final_message=True)).json()
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "so")
        assert api.engine.codec.endings == ["continued"]
        assert api.engine.requests[0].continues
        await api.chat(messages=SAID, continue_final_message=True, add_generation_prompt=False)
        assert api.engine.codec.endings[-1] == "continued"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": SAID, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": [*SAID, {"role": "assistant"}]}, "messages[2].content"),
    ],
)
async def test_what_can_not_be_continued_is_refused(
    api: Harness, fields: dict[str, Any], param: str
) -> None:
    refused = await api.chat(continue_final_message=True, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


# --- tokens


async def test_messages_are_as_many_tokens_as_they_are_billed(run: Any) -> None:
    weather = {"type": "function", "function": {"name": "weather"}}
    async with run(ScriptedEngine(codec=FakeCodec(QWEN))) as api:
        body = chat_body(tools=[weather], chat_template_kwargs={"a": 1})
        found = (await api.client.post("/tokenize", json=body)).json()
        billed = (await api.client.post("/v1/chat/completions", json=body)).json()
        codec = api.engine.codec
        assert codec.chats[0] == codec.chats[1]
        assert codec.tools[0] == codec.tools[1]
        assert codec.options[0] == codec.options[1]
    assert found["count"] == len(found["tokens"]) == billed["usage"]["prompt_tokens"]
    assert (found["max_model_len"], found["token_strs"]) == (64, None)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": "a", "messages": SAID}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"prompt": "a" * 32_001}, 400, "prompt"),
        ("/detokenize", {"tokens": [1, 50_000]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
async def test_wrong_questions_for_tokens_are_refused_in_openais_shape(
    api: Harness, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    refused = await api.client.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)
    assert api.engine.requests == []


async def test_tokens_need_a_key_and_count_as_requests(run: Any) -> None:
    async with run(headers={}) as api:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            refused = await api.client.post(path, json=body)
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert (await api.client.get("/tokenizer_info")).status_code == 401


async def test_tokens_count_as_requests_of_the_limits() -> None:
    tiers = [Tier(name="standard", requests_per_minute=2)]
    async with serve(tiers=tiers, limiter=Limiter()) as server:
        asked = (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]}))
        answers = [
            await server.client.post(path, json=body, headers=USER)
            for path, body in (*asked, *asked)
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
