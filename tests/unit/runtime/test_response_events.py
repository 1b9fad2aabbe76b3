"""Streams of the Responses API: every event, in its order; and runs in the background."""

import asyncio
from typing import Any

import pytest

from fakes import ScriptedEngine
from harness import Harness
from llm_runtime.request import FinishReason
from llm_runtime.usage import Outcome
from unit.runtime.responses import (
    CALL,
    PATH,
    THINKING,
    WEATHER,
    answered,
    ask,
    engine,
    keeping,
    named,
    refused,
)
from waiting import until

TEXT = {"type": "output_text", "annotations": [], "logprobs": []}


async def streamed(api: Harness, **fields: Any) -> list[dict[str, Any]]:
    response = await ask(api, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    return named(response.text)


def bare(event: dict[str, Any]) -> dict[str, Any]:
    """Without its number and its response."""
    return {name: value for name, value in event.items() if name not in ("sequence_number",)}


async def test_a_text_has_all_events_in_their_order(run: Any) -> None:
    async with run(engine()) as api:
        created, in_progress, *steps, completed = await streamed(api)
    response = created["response"]
    assert created["type"] == "response.created"
    assert (response["status"], response["output"], response["usage"]) == ("in_progress", [], None)
    assert (in_progress["type"], in_progress["response"]) == ("response.in_progress", response)
    id_ = f"msg_{response['id'].removeprefix('resp_')}_0"
    item = {
        "id": id_,
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    place = {"item_id": id_, "output_index": 0, "content_index": 0}
    part = {**TEXT, "text": "Hello there!"}
    done = {**item, "status": "completed", "content": [part]}
    assert [bare(event) for event in steps] == [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": {**TEXT, "text": ""}},
        *(
            {"type": "response.output_text.delta", **place, "delta": text, "logprobs": []}
            for text in ("Hello", " there", "!")
        ),
        {"type": "response.output_text.done", **place, "text": "Hello there!", "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
    ]
    last = completed["response"]
    assert (completed["type"], last["status"], last["output"]) == (
        "response.completed",
        "completed",
        [done],
    )
    assert last["usage"]["total_tokens"] == 6
    assert {**last, "status": "in_progress", "output": [], "usage": None, "completed_at": None} == (
        response
    )


async def test_thoughts_and_calls_have_theirs(run: Any) -> None:
    script = ["<think>", "\nHm", ", a city.", "</think>\n\n", *CALL, "Or not."]
    async with run(engine(script, THINKING)) as api:
        _, _, *steps, completed = await streamed(api, tools=[WEATHER])
        whole = await answered(api, tools=[WEATHER])
    response = completed["response"]
    stem = response["id"].removeprefix("resp_")
    thought, call, text = response["output"]
    place = {"item_id": f"rs_{stem}_0", "output_index": 0, "content_index": 0}
    part = {"type": "reasoning_text", "text": "Hm, a city."}
    begun = {**thought, "status": "in_progress", "content": []}
    called = {"item_id": f"fc_{stem}_1", "output_index": 1}
    arguments = '{"city": "Kiel"}'
    assert [bare(event) for event in steps[:-6]] == [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        {"type": "response.reasoning_text.delta", **place, "delta": "Hm"},
        {"type": "response.reasoning_text.delta", **place, "delta": ", a city."},
        {"type": "response.reasoning_text.done", **place, "text": "Hm, a city."},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": thought},
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {**call, "status": "in_progress", "arguments": ""},
        },
        {"type": "response.function_call_arguments.delta", **called, "delta": arguments},
        {
            "type": "response.function_call_arguments.done",
            **called,
            "name": "weather",
            "arguments": arguments,
        },
        {"type": "response.output_item.done", "output_index": 1, "item": call},
    ]
    assert [event["type"].removeprefix("response.") for event in steps[-6:]] == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert (text["content"][0]["text"], text["status"]) == ("Or not.", "completed")
    assert response["usage"] == whole["usage"]
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 3


async def test_a_stream_that_is_cut_ends_incomplete(run: Any) -> None:
    async with run(engine()) as api:
        *_, done, last = await streamed(api, max_output_tokens=2)
    assert done["item"]["status"] == "incomplete"
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_stream_has_log_probabilities_beside_its_texts(run: Any) -> None:
    async with run(engine()) as api:
        found = await streamed(api, include=["message.output_text.logprobs"])
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [[token["token"] for token in event["logprobs"]] for event in deltas] == [
        ["Hello"],
        [" there"],
        ["!"],
    ]
    [done] = [event for event in found if event["type"] == "response.output_text.done"]
    assert [token["token"] for token in done["logprobs"]] == ["Hello", " there", "!"]
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == done["logprobs"]


async def test_what_fails_later_is_told_by_an_event(run: Any) -> None:
    failing = engine()
    failing.ending = FinishReason.ERROR
    async with run(failing) as api:
        store = keeping(api)
        *_, last = await streamed(api)
        assert (await ask(api)).status_code == 500
        assert await store.find("web", [last["response"]["id"]]) == {}
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert "try again" in last["response"]["error"]["message"]
    assert "/secret" not in str(last)


async def test_a_client_that_leaves_ends_its_response(live: Any) -> None:
    slow = engine(["word "] * 200)
    slow.token_seconds = 0.02
    with live(slow) as api:
        store = keeping(api)
        body = {"model": "support-bot", "input": "hi", "stream": True}
        async with api.client.stream("POST", PATH, json=body) as response:
            async for line in response.aiter_lines():
                if "delta" in line:
                    break
        await until(lambda: bool(slow.cancelled))
        await until(lambda: bool(api.rows))
        assert api.rows[0].outcome is Outcome.CANCELLED
        assert not list(store._known.items())


# --- In the background


async def test_a_response_in_the_background_is_polled(run: Any) -> None:
    async with run(engine()) as api:
        keeping(api)
        begun = await answered(api, background=True)
        assert (begun["status"], begun["output"]) == ("in_progress", [])
        path = f"{PATH}/{begun['id']}"
        for _ in range(200):
            found = (await api.client.get(path)).json()
            if found["status"] != "in_progress":
                break
            await asyncio.sleep(0.01)
        assert found["status"] == "completed"
        assert found["output"][0]["content"][0]["text"] == "Hello there!"
        assert [row.outcome for row in api.rows] == [Outcome.COMPLETED]
        again = await answered(api, previous_response_id=begun["id"], input="more")
        assert again["previous_response_id"] == begun["id"]


async def begun_slowly(api: Harness, **fields: Any) -> str:
    """Id of a response that runs for some seconds."""
    keeping(api)
    return str((await answered(api, background=True, **fields))["id"])


def slowly() -> ScriptedEngine:
    slow = engine(["word "] * 500)
    slow.token_seconds = 0.01
    return slow


async def test_a_response_in_the_background_can_be_cancelled(run: Any) -> None:
    async with run(slowly()) as api:
        id_ = await begun_slowly(api)
        param, sentence = await refused(api, previous_response_id=id_)
        assert param == "previous_response_id"
        assert "in_progress" in sentence
        for _ in range(2):  # The second time changes nothing.
            cancelled = await api.client.post(f"{PATH}/{id_}/cancel")
            assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        await until(lambda: bool(api.rows))
        assert api.rows[0].outcome is Outcome.CANCELLED
        assert (await api.client.get(f"{PATH}/{id_}")).json()["status"] == "cancelled"


async def test_a_cancellation_in_another_replica_is_noticed(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_runtime.api.responses.create.LOOK_SECONDS", 0.02)
    async with run(slowly()) as api:
        id_ = await begun_slowly(api)
        assert await api.server.responses.delete("web", id_)
        await until(lambda: bool(api.rows))
        assert api.rows[0].outcome is Outcome.CANCELLED


async def test_deleting_a_response_that_runs_ends_it(run: Any) -> None:
    async with run(slowly()) as api:
        id_ = await begun_slowly(api)
        deleted = await api.client.delete(f"{PATH}/{id_}")
        assert deleted.json() == {"id": id_, "object": "response", "deleted": True}
        await until(lambda: bool(api.rows))
        assert api.rows[0].outcome is Outcome.CANCELLED
        assert (await api.client.get(f"{PATH}/{id_}")).status_code == 404


async def test_what_fails_in_the_background_is_kept_as_failed(run: Any) -> None:
    failing = engine()
    failing.ending = FinishReason.ERROR
    async with run(failing) as api:
        id_ = await begun_slowly(api)
        await until(lambda: bool(api.rows))
        await until(lambda: api.server.runs.find(id_) is None)
        found = (await api.client.get(f"{PATH}/{id_}")).json()
        param, _ = await refused(api, previous_response_id=id_)
    assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
    assert param == "previous_response_id"


async def test_a_stream_in_the_background_goes_on_without_its_client_and_is_taken_up(
    live: Any,
) -> None:
    slow = engine(["word "] * 60)
    slow.token_seconds = 0.01
    with live(slow) as api:
        keeping(api)
        body = {"model": "support-bot", "input": "hi", "stream": True, "background": True}
        text = ""
        async with api.client.stream("POST", PATH, json=body) as response:
            async for part in response.aiter_text():
                text += part
                if text.count("\n\n") >= 6:
                    break
        first = named(text[: text.rindex("\n\n")])
        path = f"{PATH}/{first[0]['response']['id']}"
        after = first[-1]["sequence_number"]
        rest = await api.client.get(path, params={"stream": True, "starting_after": after})
        later = named(rest.text)
        again = named((await api.client.get(path, params={"stream": True})).text)
        other = await api.client.get(path)
    assert later[0]["sequence_number"] == after + 1
    assert later[-1]["type"] == "response.completed"
    assert later[-1]["response"] == other.json()
    assert again == [*first, *later]


async def test_only_what_was_begun_so_can_be_followed(run: Any) -> None:
    async with run(engine()) as api:
        keeping(api)
        answer = await answered(api)
        told = await api.client.get(f"{PATH}/{answer['id']}", params={"stream": True})
    assert (told.status_code, told.json()["error"]["param"]) == (400, "stream")


async def test_runs_that_go_on_end_with_the_server(run: Any) -> None:
    async with run(slowly()) as api:
        id_ = await begun_slowly(api)
        store = api.server.responses
        await api.engine.drain(0)
    found = (await store.find("web", [id_]))[id_]
    assert (found.status, found.response["error"]["code"]) == ("failed", "server_error")
    assert "shut down" in found.response["error"]["message"]
