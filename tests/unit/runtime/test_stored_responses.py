"""Responses that are kept: whose they are, how they are continued, and how they end."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harness import Harness
from llm_runtime.contract import SessionsConfig
from llm_runtime.db.database import Database
from llm_runtime.db.migrate import upgrade
from llm_runtime.sessions import Responses, Stored
from unit.runtime.responses import (
    CALL,
    PATH,
    RAIN,
    WEATHER,
    answered,
    ask,
    engine,
    keeping,
    refused,
    told,
)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def api(run: Any) -> AsyncIterator[Harness]:
    async with run(engine()) as harness:
        keeping(harness)
        yield harness


def made(id_: str, *before: str, status: str = "completed", run_until: float = 0) -> Stored:
    return Stored({"id": id_, "status": status, "output": []}, [], list(before), run_until)


async def ids(store: Responses, *wanted: str, tenant: str = "web") -> set[str]:
    return set(await store.find(tenant, wanted))


# --- The store


async def test_two_tenants_never_see_each_other(database: Database) -> None:
    for store in (Responses(SessionsConfig()), Responses(SessionsConfig(), database)):
        await store.add("web", made("a"))
        assert await ids(store, "a", tenant="other") == set()
        assert not await store.delete("other", "a")
        assert await ids(store, "a", "b") == {"a"}
        assert await store.delete("web", "a")
        assert await ids(store, "a") == set()


async def test_a_response_ends_some_time_after_it_was_last_continued(database: Database) -> None:
    for kept in (None, database):
        clock = Clock()
        store = Responses(SessionsConfig(ttl_seconds=100), kept, clock)
        await store.add("web", made("a"))
        await store.add("web", made("lonely"))
        clock.now += timedelta(seconds=90)
        await store.add("web", made("b", "a"))
        clock.now += timedelta(seconds=90)
        assert await ids(store, "a", "b", "lonely") == {"a", "b"}
        clock.now += timedelta(seconds=11)
        assert await ids(store, "a", "b") == set()


async def test_the_response_used_least_recently_makes_room() -> None:
    store = Responses(SessionsConfig(max_sessions=2))
    for id_ in ("a", "b", "c"):
        await store.add("web", made(id_))
    assert await ids(store, "a", "b", "c") == {"b", "c"}


async def test_replicas_share_responses_and_a_restart_keeps_them(database: Database) -> None:
    async with (
        Responses(SessionsConfig(), database) as one,
        Responses(SessionsConfig(), database) as other,
    ):
        await one.add("web", made("a"))
        assert await ids(other, "a") == {"a"}
        await other.delete("web", "a")
        assert await ids(one, "a") == set(), "memory must not keep what is deleted"
        await one.add("web", made("b"))
    assert await ids(Responses(SessionsConfig(), database), "b") == {"b"}


async def test_what_is_cancelled_in_one_replica_stays_so_in_all(database: Database) -> None:
    one = Responses(SessionsConfig(), database)
    other = Responses(SessionsConfig(), database)
    await one.add("web", made("a", status="in_progress", run_until=4e9))
    assert await other.end("web", made("a", status="cancelled"))
    assert not await one.end("web", made("a"))
    for store in (one, other):
        assert (await store.find("web", ["a"]))["a"].status == "cancelled"


async def test_a_run_whose_replica_died_has_failed(database: Database) -> None:
    for kept in (None, database):
        clock = Clock()
        store = Responses(SessionsConfig(), kept, clock)
        until = clock.now.timestamp() + 60
        await store.add("web", made("a", status="in_progress", run_until=until))
        assert (await store.find("web", ["a"]))["a"].status == "in_progress"
        clock.now += timedelta(seconds=61)
        found = (await store.find("web", ["a"]))["a"]
        assert (found.status, found.response["error"]["code"]) == ("failed", "server_error")


async def test_memory_carries_on_while_the_database_is_away_and_catches_up(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'away.db'}")
    database.prepared = False
    async with Responses(SessionsConfig(), database) as store:
        await store.add("web", made("a"))
        assert await ids(store, "a") == {"a"}
        await upgrade(database)
        database.prepared = True
        assert await ids(store, "a") == {"a"}
        await store.add("web", made("b", "a"))
        assert await ids(Responses(SessionsConfig(), database), "a", "b") == {"a", "b"}
    await database.close()


# --- Continuing


async def test_a_response_is_continued_with_all_that_stands_before_it(api: Harness) -> None:
    first = await answered(api, input="one", instructions="Be brief")
    second = await answered(api, input="two", previous_response_id=first["id"])
    said = await told(api, input="three", previous_response_id=second["id"], instructions="Be kind")
    assert first["store"] is True
    assert second["previous_response_id"] == first["id"]
    assert [(turn["role"], turn["content"]) for turn in said] == [
        ("system", "Be kind"),
        ("user", "one"),
        ("assistant", "Hello there!"),
        ("user", "two"),
        ("assistant", "Hello there!"),
        ("user", "three"),
    ]


async def test_the_output_of_a_call_may_come_alone(run: Any) -> None:
    async with run(engine(CALL)) as api:
        keeping(api)
        first = await answered(api, tools=[WEATHER])
        call_id = first["output"][0]["call_id"]
        asked: dict[str, Any] = {"tools": [WEATHER], "previous_response_id": first["id"]}
        said = await told(api, input=[{**RAIN, "call_id": call_id}], **asked)
        assert [turn["role"] for turn in said] == ["user", "assistant", "tool"]
        assert said[2]["name"] == "weather"
        field, sentence = await refused(api, input="never mind", **asked)
        assert field == "input"
        assert call_id in sentence
        field, _ = await refused(api, input=[{**RAIN, "call_id": "call_other"}], **asked)
        assert field == "input[0].call_id"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_stored_is_nowhere(api: Harness, stream: bool) -> None:
    answer = await ask(api, store=False, stream=stream)
    assert answer.status_code == 200
    assert not list(api.server.responses._known.items())
    if not stream:
        assert answer.json()["store"] is False
        assert (await api.client.get(f"{PATH}/{answer.json()['id']}")).status_code == 404


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_conversation_that_lacks_a_response_can_not_be_continued(
    api: Harness, gone: int
) -> None:
    first = await answered(api)
    second = await answered(api, previous_response_id=first["id"])
    lost = (first, second)[gone]["id"]
    await api.client.delete(f"{PATH}/{lost}")
    answer = await ask(api, previous_response_id=second["id"])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "previous_response_not_found")
    assert error["param"] == "previous_response_id"
    assert lost in error["message"]


async def test_another_keys_response_is_not_there(api: Harness) -> None:
    await api.server.responses.add("other", made("resp_1"))
    error = (await ask(api, previous_response_id="resp_1")).json()["error"]
    assert error["code"] == "previous_response_not_found"
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/input_items"),
    ):
        answer = await api.client.request(method, f"{PATH}/resp_1{path}")
        assert answer.status_code == 404
        assert "not found" in answer.json()["error"]["message"]
    assert await ids(api.server.responses, "resp_1", tenant="other") == {"resp_1"}


async def test_items_are_referred_to_by_their_ids(api: Harness) -> None:
    first = await answered(api, input="one")
    listed = (await api.client.get(f"{PATH}/{first['id']}/input_items")).json()
    references = [
        {"id": listed["data"][0]["id"]},
        {"type": "item_reference", "id": first["output"][0]["id"]},
    ]
    two = {"role": "user", "content": "two"}
    said = await told(api, input=[*references, two])
    assert [turn["content"] for turn in said] == ["one", "Hello there!", "two"]
    for unknown in ("msg_x", f"{first['output'][0]['id']}7", f"msg_{'0' * 32}_0"):
        missing = {"type": "item_reference", "id": unknown}
        answer = await ask(api, input=[missing, two])
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (404, "input[0].id")
        assert unknown in error["message"]


# --- Looking them up


async def test_a_response_is_looked_up_as_it_was_answered(api: Harness) -> None:
    whole = await answered(api, metadata={"a": "b"})
    found = await api.client.get(f"{PATH}/{whole['id']}")
    assert found.json() == whole


async def test_a_stream_is_kept_as_its_last_event_tells(api: Harness) -> None:
    text = (await ask(api, stream=True)).text
    last = text.strip().rsplit("data: ", 1)[1]
    [(_, kept)] = api.server.responses._known.items()
    found = await api.client.get(f"{PATH}/{kept.stored.id}")
    assert found.text in last


async def test_input_items_are_listed_by_pages(api: Harness) -> None:
    texts = [str(number) for number in range(5)]
    items = [{"role": "user", "content": text} for text in texts]
    path = f"{PATH}/{(await answered(api, input=items))['id']}/input_items"

    async def listed(**options: Any) -> tuple[list[str], dict[str, Any]]:
        page = (await api.client.get(path, params=options)).json()
        return [item["content"][0]["text"] for item in page["data"]], page

    assert (await listed())[0] == texts[::-1]
    shown, page = await listed(order="asc", limit=2)
    assert (shown, page["has_more"]) == (["0", "1"], True)
    assert page["data"][0]["role"] == "user"
    assert page["first_id"] == page["data"][0]["id"]
    shown, page = await listed(order="asc", limit=3, after=page["last_id"])
    assert (shown, page["has_more"]) == (["2", "3", "4"], False)
    for wrong in ({"after": "nothing"}, {"limit": 0}, {"order": "up"}):
        answer = await api.client.get(path, params=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(wrong)))


async def test_only_what_runs_can_be_cancelled(api: Harness) -> None:
    answer = await answered(api)
    told = await api.client.post(f"{PATH}/{answer['id']}/cancel")
    assert (told.status_code, told.json()["error"]["param"]) == (400, "response_id")
    assert "background" in told.json()["error"]["message"]
    finished = {**answer, "id": "resp_2", "background": True}
    await api.server.responses.add("web", Stored(finished, [], []))
    told = await api.client.post(f"{PATH}/resp_2/cancel")
    assert told.status_code == 400
    assert "completed" in told.json()["error"]["message"]


async def test_without_a_store_nothing_is_found(run: Any) -> None:
    async with run(engine()) as api:
        answer = await answered(api)
        told = await api.client.get(f"{PATH}/{answer['id']}")
    assert answer["store"] is False
    assert (told.status_code, told.json()["error"]["message"]) == (
        404,
        "This server keeps no responses.",
    )
