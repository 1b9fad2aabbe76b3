"""Adapters that come and go with a mounted file:
the engine has what the file says, and whoever asks is answered."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import ScriptedEngine
from harness import KEY, config, key_file, record
from llm_runtime import errors
from llm_runtime.adapters import AdapterList, Adapters
from llm_runtime.adapters.keeper import FIRST_PAUSE_SECONDS
from llm_runtime.api.server import Server, make_server
from llm_runtime.api.serving import State, WarmModel
from llm_runtime.app import create_app
from llm_runtime.auth.callers import KeyRing
from llm_runtime.cache.completions import CompletionCache
from llm_runtime.common.aside import in_thread
from llm_runtime.contract import AdapterFile, FatalReport, PinnedAdapter, RegistryAccess, format_key
from waiting import until

SERVER = {"default": {"trackingUri": "http://mlflow", "password": "secret"}}


OPERATORS = format_key("op", "o" * 43)
CANDIDATE = "legal@2.5f3c"
BESIDE = {"candidates": [{"name": CANDIDATE, "model": "bot-legal", "version": "2"}]}


def write(file: Path, *adapters: tuple[str, str], **more: Any) -> None:
    """`adapters`: name and version. In one step, as the kubelet does it."""
    entries = [
        {"name": name, "model": f"bot-{name}", "version": version} for name, version in adapters
    ]
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"connections": SERVER, "adapters": entries, **more}))
    fresh.replace(file)


def spoil(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_text(text)


class Shelf:
    """A registry without bytes: `name-version` is the folder's name."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.faults: dict[str, errors.Fatal] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, adapter: PinnedAdapter, access: RegistryAccess) -> Path:
        what = f"{adapter.name}-{adapter.version}"
        self.asked.append(what)
        await self.gate.wait()
        if fault := self.faults.get(what):
            raise fault
        return Path(what)


class World:
    """The keeper of one engine's adapters, with a clock that obeys."""

    def __init__(self, file: Path, engine: ScriptedEngine | None = None, most: int = 4) -> None:
        self.file = file
        self.now = 0.0
        self.shelf = Shelf()
        self.engine = engine or ScriptedEngine()
        self.adapters = Adapters(AdapterList(file), self.shelf, most, lambda: self.now, lambda: 0.5)
        self.adapters.attach(self.engine)

    async def look(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.adapters.look()
        for _ in range(30):
            await asyncio.sleep(0)

    def states(self) -> list[tuple[str, str | None, str]]:
        return [
            (entry["name"], entry["version"], entry["state"]) for entry in self.adapters.report()
        ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "adapters.json"


async def test_the_engine_gets_what_the_file_says(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    await world.look()
    write(file, ("legal", "2"), ("french", "7"))
    await world.look()
    write(file, ("french", "7"))
    await world.look()
    assert world.engine.changes == [
        "load legal legal-1",
        "load legal legal-2",
        "load french french-7",
        "drop legal",
    ]
    assert world.states() == [("french", "7", "loaded")]
    write(file)
    await world.look()
    assert (world.engine.adapters, world.states()) == ((), [])


async def test_what_is_loaded_is_not_loaded_again(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    for _ in range(3):
        await world.look(60)
    write(file, ("legal", "1"))
    await world.look()
    assert world.engine.changes == ["load legal legal-1"]


@pytest.mark.parametrize("text", ["", "{", '{"adapters": [{"name": "legal"}]}', '{"adapters": 3}'])
async def test_a_file_that_is_broken_or_gone_leaves_what_is_loaded(
    file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    await world.look()
    spoil(file, text)
    await world.look()
    spoil(file, None)
    await world.look()
    assert world.states() == [("legal", "1", "loaded")]
    assert "the last good one stays in force" in caplog.text


async def test_a_name_twice_is_no_good_file_and_the_log_holds_no_credentials(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, ("legal", "1"), ("legal", "2"))
    assert AdapterList(file).wanted.adapters == ()
    assert "'legal' is named twice" in caplog.text
    assert "secret" not in caplog.text


async def test_a_server_that_is_not_named_any_more_takes_nothing_away(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    await world.look()
    write(file, ("legal", "1"), ("french", "1"), connections={})
    await world.look()
    assert world.states() == [("legal", "1", "loaded"), ("french", None, "failed")]
    assert "no connection 'default'" in world.adapters.report()[1]["message"]


async def test_an_adapter_of_another_base_is_reported_and_the_old_version_keeps_answering(
    file: Path,
) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    await world.look()
    write(file, ("legal", "bad"))
    await world.look()
    (entry,) = world.adapters.report()
    assert (entry["version"], entry["wanted_version"], entry["state"]) == ("1", "bad", "failed")
    assert (entry["reason"], "another base" in entry["message"]) == ("ModelUnsupported", True)
    assert sorted(world.adapters.gauges()) == [("legal", "1", True), ("legal", "bad", False)]
    assert world.engine.adapters == ("legal",)


async def test_a_fault_is_tried_again_ever_more_rarely_and_does_not_hold_up_others(
    file: Path,
) -> None:
    write(file, ("legal", "1"), ("french", "1"))
    world = World(file)
    world.shelf.faults["legal-1"] = errors.RegistryUnreachable("no answer")
    await world.look()
    assert world.states() == [("legal", None, "failed"), ("french", "1", "loaded")]
    pause = FIRST_PAUSE_SECONDS
    for attempts in (2, 3, 4):
        await world.look(pause * 0.9)
        assert world.shelf.asked.count("legal-1") == attempts - 1
        await world.look(pause * 0.2)
        assert world.shelf.asked.count("legal-1") == attempts
        pause *= 2
    world.shelf.faults.clear()
    await world.look(pause)
    assert world.states()[0] == ("legal", "1", "loaded")


async def test_a_changed_list_is_tried_at_once(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    world.shelf.faults["legal-1"] = errors.RegistryDenied("wrong password")
    await world.look()
    world.shelf.faults.clear()
    write(
        file,
        ("legal", "1"),
        connections={"default": {"trackingUri": "http://mlflow", "password": "right"}},
    )
    await world.look()
    assert world.states() == [("legal", "1", "loaded")]


async def test_what_another_container_tells_anew_is_tried_at_once(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    told = list[bool]()
    world.adapters = Adapters(
        AdapterList(file),
        world.shelf,
        4,
        lambda: world.now,
        lambda: 0.5,
        news=lambda: bool(told and told.pop()),
    )
    world.adapters.attach(world.engine)
    world.shelf.faults["legal-1"] = errors.Reported(
        FatalReport(reason="RegistryDenied", message="wrong password")
    )
    await world.look()
    assert world.adapters.report()[0]["reason"] == "RegistryDenied"
    world.shelf.faults.clear()
    await world.look()
    assert world.states() == [("legal", None, "failed")]
    told.append(True)
    await world.look()
    assert world.states() == [("legal", "1", "loaded")]


async def test_a_version_that_is_not_wanted_any_more_does_not_hold_up_the_next(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    world.shelf.gate.clear()
    await world.look()
    write(file, ("legal", "2"))
    await world.look()
    world.shelf.gate.set()
    await world.look()
    assert world.engine.changes == ["load legal legal-2"]


async def test_one_taken_from_the_list_while_it_loads_does_not_stay(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file, ScriptedEngine(adapter_seconds=0.01))
    await world.look()
    write(file)
    await world.look()
    await asyncio.sleep(0.03)
    await world.look()
    assert world.engine.adapters == ()


async def test_over_the_engines_limit_the_first_are_loaded_and_the_rest_say_why(file: Path) -> None:
    write(file, *((name, "1") for name in "abc"))
    world = World(file, most=2)
    await world.look()
    assert world.states() == [("a", "1", "loaded"), ("b", "1", "loaded"), ("c", None, "failed")]
    assert "engine.maxAdapters" in world.adapters.report()[2]["message"]


async def test_one_that_the_engine_had_to_let_go_comes_back(file: Path) -> None:
    write(file, ("legal", "1"))
    world = World(file)
    await world.look()
    world.engine.adapters = ()
    await world.look()
    assert world.engine.adapters == ("legal",)


async def test_another_engine_gets_them_all(file: Path) -> None:
    write(file, ("legal", "1"), ("french", "2"))
    world = World(file)
    await world.look()
    world.engine = ScriptedEngine()
    world.adapters.attach(world.engine)
    assert world.adapters.version("legal") is None
    await world.look()
    assert world.engine.adapters == ("legal", "french")


async def test_what_decides_answers_is_the_same_everywhere_and_no_ones_while_it_changes(
    file: Path,
) -> None:
    write(file, ("legal", "1"))
    here = World(file)
    there = World(file)
    assert here.adapters.identity("legal") != here.adapters.identity("legal")
    for world in (here, there):
        await world.look()
    first = here.adapters.identity("legal")
    assert first == there.adapters.identity("legal")
    write(file, ("legal", "2"))
    await here.look()
    assert here.adapters.identity("legal") not in (first, "")


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path, file: Path) -> Serve:
    """A whole application that follows `file`."""

    @asynccontextmanager
    async def start(
        engine: ScriptedEngine,
        fetch: Callable[..., Awaitable[Path]],
        wait: bool = True,
        authentication: str = "Required",
        **key: Any,
    ) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
        keys = tmp_path / "keys.json"
        keys.write_text(key_file(record(KEY, **key), record(OPERATORS, operator=True)))
        settings = config().model_copy(update={"authentication": authentication})
        adapters = Adapters(AdapterList(file), fetch, 4)
        cache = CompletionCache(settings.server.completion_cache)
        server = make_server(
            settings,
            in_thread(lambda: WarmModel(engine, engine.codec)),
            KeyRing(keys),
            adapters=adapters,
            cache=cache,
            parts=[adapters],
        )
        app = create_app(server)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport, base_url="http://test", headers={"X-API-Key": KEY}
            ) as client,
        ):
            await until(lambda: not wait or server.serving.state is not State.LOADING)
            yield server, client

    return start


def asking(adapter: str) -> dict[str, Any]:
    return {"model": f"support-bot:{adapter}", "prompt": "a b", "temperature": 0}


async def test_a_server_is_ready_when_its_adapters_are(file: Path, serve: Serve) -> None:
    write(file, ("legal", "3"))
    shelf = Shelf()
    shelf.gate.clear()
    async with serve(ScriptedEngine(), shelf, wait=False) as (server, client):
        await until(lambda: bool(shelf.asked))
        assert (await client.get("/readyz")).status_code == 503
        shelf.gate.set()
        await until(lambda: server.serving.state is State.READY)
        assert (await client.post("/v1/completions", json=asking("legal"))).status_code == 200
        listed = (await client.get("/v1/models")).json()["data"]
        status = (await client.get("/status")).json()["adapters"]
        metrics = (await client.get("/metrics")).text
    assert [(model["id"], model.get("version")) for model in listed] == [
        ("support-bot", server.config.model.mlflow.version),
        ("support-bot:legal", "3"),
    ]
    assert status == [{"name": "legal", "version": "3", "wanted_version": "3", "state": "loaded"}]
    assert 'llm_adapter_loaded{adapter="legal",version="3"} 1.0' in metrics


async def test_an_adapter_that_fails_keeps_no_server_from_being_ready(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "bad"))
    async with serve(ScriptedEngine(), Shelf()) as (_, client):
        assert (await client.get("/readyz")).status_code == 200
        refused = await client.post("/v1/completions", json=asking("legal"))
        metrics = (await client.get("/metrics")).text
        base = await client.post(
            "/v1/completions", json={**asking("legal"), "model": "support-bot"}
        )
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    assert 'llm_adapter_loaded{adapter="legal",version="bad"} 0.0' in metrics
    assert (
        'llm_adapter_failed{adapter="legal",reason="ModelUnsupported",version="bad"} 1.0' in metrics
    )
    assert base.status_code == 200


async def test_a_moved_version_answers_within_a_second_and_no_cached_answer_of_the_old_one(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "1"))
    engine = ScriptedEngine()
    async with serve(engine, Shelf()) as (server, client):
        body = asking("legal")
        for _ in range(2):
            await client.post("/v1/completions", json=body)
        assert len(engine.requests) == 1
        write(file, ("legal", "2"))
        await until(lambda: server.adapters.version("legal") == "2")
        await client.post("/v1/completions", json=body)
        assert len(engine.requests) == 2
        write(file, ("legal", "1"))
        await until(lambda: server.adapters.version("legal") == "1")
        await client.post("/v1/completions", json=body)
    assert len(engine.requests) == 2


async def test_an_idempotency_key_outlives_a_moved_adapter(file: Path, serve: Serve) -> None:
    write(file, ("legal", "1"))
    engine = ScriptedEngine()
    async with serve(engine, Shelf()) as (server, client):
        headers = {"Idempotency-Key": "one"}
        first = await client.post("/v1/completions", json=asking("legal"), headers=headers)
        write(file, ("legal", "2"))
        await until(lambda: server.adapters.version("legal") == "2")
        second = await client.post("/v1/completions", json=asking("legal"), headers=headers)
    assert (first.status_code, second.status_code, len(engine.requests)) == (200, 200, 1)


async def test_a_key_for_other_adapters_is_refused_also_before_one_is_loaded(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "bad"), ("french", "1"))
    async with serve(ScriptedEngine(), Shelf(), adapters=("french",)) as (_, client):
        answers = [
            (await client.post("/v1/completions", json=asking(name))).status_code
            for name in ("legal", "french")
        ]
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert answers == [404, 200]
    assert listed == ["support-bot", "support-bot:french"]


FAULTS: list[errors.Fatal] = [
    errors.ModelUnsupported("the adapter is not one of this base model: it adapts h.0.attn"),
    errors.ModelUnsupported("the adapter has rank 128; engine.maxAdapterRank is 64"),
    errors.ModelCorrupt("adapter_model.safetensors is not a whole safetensors file"),
    errors.RegistryDenied("MLflow refused model bot-legal version 2 (HTTP 403)"),
]


@pytest.mark.parametrize(
    "fault", FAULTS, ids=["another base", "rank over the limit", "corrupt file", "denied"]
)
async def test_a_version_that_fails_is_told_everywhere_but_to_clients_and_the_one_before_answers(
    file: Path, serve: Serve, fault: errors.Fatal, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, ("legal", "1"))
    shelf = Shelf()
    shelf.faults["legal-2"] = fault
    async with serve(ScriptedEngine(), shelf) as (server, client):
        write(file, ("legal", "2"))
        await until(lambda: server.adapters.report()[0]["state"] == "failed")
        answer = await client.post("/v1/completions", json=asking("legal"))
        [told] = (await client.get("/status")).json()["adapters"]
        metrics = (await client.get("/metrics")).text
        listed = (await client.get("/v1/models")).text
    assert answer.status_code == 200
    assert (told["version"], told["reason"], told["message"]) == ("1", fault.reason, str(fault))
    assert (
        f'llm_adapter_failed{{adapter="legal",reason="{fault.reason}",version="2"}} 1.0' in metrics
    )
    assert 'llm_adapter_loaded{adapter="legal",version="1"} 1.0' in metrics
    assert any(str(fault) in record.getMessage() for record in caplog.records)
    assert str(fault) not in listed


async def test_the_default_adapter_answers_for_the_bare_name_and_base_is_the_model(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "3"), defaultAdapter="legal")
    engine = ScriptedEngine()
    async with serve(engine, Shelf()) as (server, client):
        for model, adapter in (
            ("support-bot", "legal"),
            ("support-bot:base", ""),
            ("support-bot:legal", "legal"),
        ):
            answer = await client.post(
                "/v1/completions", json={**asking(""), "model": model, "prompt": model}
            )
            assert answer.status_code == 200
            assert engine.requests[-1].adapter == adapter
            assert answer.json()["model"] == ("support-bot:legal" if adapter else "support-bot")
        await client.post("/predict", json={"prompt": "a b"})
        assert engine.requests[-1].adapter == "legal"
        listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
        one = (await client.get("/v1/models/support-bot")).json()
        version = server.config.model.mlflow.version
        write(file, ("legal", "3"))
        await until(lambda: not server.default_adapter)
        await client.post(
            "/v1/completions", json={**asking(""), "model": "support-bot", "prompt": "c d"}
        )
        assert engine.requests[-1].adapter == ""
    assert {name: model["version"] for name, model in listed.items()} == {
        "support-bot": "3", "support-bot:base": version, "support-bot:legal": "3",
    }  # fmt: skip
    assert (one["adapter"], one["parent"]) == ("legal", "support-bot")


async def test_a_default_adapter_that_is_not_there_is_no_reason_to_answer_without_it(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "bad"), defaultAdapter="legal")
    async with serve(ScriptedEngine(), Shelf()) as (_, client):
        bare = await client.post("/v1/completions", json={**asking(""), "model": "support-bot"})
        base = await client.post(
            "/v1/completions", json={**asking(""), "model": "support-bot:base"}
        )
    assert (bare.status_code, base.status_code) == (503, 200)


async def test_a_default_adapter_whose_first_version_has_to_pass_its_gates_is_told_apart_from_no_model(
    file: Path, serve: Serve
) -> None:
    write(file, defaultAdapter="legal", **BESIDE)
    names = ("support-bot", "support-bot:legal", "support-bot:base", "support-bot:sales")
    async with serve(ScriptedEngine(), Shelf()) as (_, client):
        answers = {
            name: await client.post("/v1/completions", json={**asking(""), "model": name})
            for name in names
        }
        older = await client.post("/predict", json={"prompt": "a b"})
        one = await client.get("/v1/models/support-bot")
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        write(file, ("legal", "2"), defaultAdapter="legal")
        await until_answered(client)
    assert [answer.status_code for answer in answers.values()] == [503, 503, 200, 404]
    assert older.status_code == 503
    bare = answers["support-bot"]
    assert bare.headers["Retry-After"]
    assert "has no version yet that may answer" in bare.text
    assert "support-bot:base" in bare.text
    assert (one.status_code, one.json()["adapter"]) == (200, "legal")
    assert listed == ["support-bot", "support-bot:base"]


async def until_answered(client: Any) -> None:
    for _ in range(200):
        body = {**asking(""), "model": "support-bot"}
        if (await client.post("/v1/completions", json=body)).status_code == 200:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the bare name is not answered")


async def test_a_key_for_other_adapters_may_not_use_the_default_one_but_the_base(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "1"), ("sales", "1"), defaultAdapter="legal")
    async with serve(ScriptedEngine(), Shelf(), adapters=["sales"]) as (_, client):
        answers = {
            name: (
                await client.post("/v1/completions", json={**asking(""), "model": name})
            ).status_code
            for name in (
                "support-bot",
                "support-bot:legal",
                "support-bot:sales",
                "support-bot:base",
            )
        }
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert list(answers.values()) == [404, 404, 200, 200]
    assert listed == ["support-bot:base", "support-bot:sales"]


@pytest.mark.parametrize("authentication", ["Required", "Disabled"])
@pytest.mark.parametrize(
    "named", [(), ("legal", CANDIDATE)], ids=["a key for all", "a key that names it"]
)
async def test_a_candidate_is_loaded_beside_its_adapter_and_there_for_the_operators_key_alone(
    file: Path, serve: Serve, authentication: str, named: tuple[str, ...]
) -> None:
    write(file, ("legal", "1"), **BESIDE)
    engine = ScriptedEngine()
    operators = {"X-API-Key": OPERATORS}
    async with serve(engine, Shelf(), authentication=authentication, adapters=named) as (_, client):
        await until(lambda: CANDIDATE in engine.adapters)
        answers = [
            await client.post("/v1/completions", json=asking(name), headers=headers)
            for name, headers in ((CANDIDATE, {}), (CANDIDATE, operators), ("legal", {}))
        ]
        about = (await client.get(f"/v1/models/support-bot:{CANDIDATE}")).status_code
        shown = [(await client.get(path)).text for path in ("/v1/models", "/status", "/info")]
        metrics = (await client.get("/metrics")).text
        await client.post("/v1/completions", json=asking("another"))
    assert [answer.status_code for answer in answers] == [404, 200, 200]
    assert CANDIDATE not in answers[0].json()["error"]["message"].split("may use", 1)[1]
    assert about == 404
    assert not any(CANDIDATE in text for text in shown)
    assert [request.adapter for request in engine.requests] == [CANDIDATE, "legal"]
    assert f'llm_adapter_loaded{{adapter="{CANDIDATE}",version="2"}} 1.0' in metrics


async def test_a_candidate_that_is_slow_or_fails_holds_up_neither_the_server_nor_its_adapter(
    file: Path, serve: Serve
) -> None:
    write(file, ("legal", "1"), **BESIDE)
    shelf = Shelf()

    async def fetch(adapter: PinnedAdapter, access: RegistryAccess) -> Path:
        if adapter.name == CANDIDATE:
            await asyncio.Event().wait()
        return await shelf(adapter, access)

    async with serve(ScriptedEngine(), fetch) as (server, client):
        assert server.serving.state is State.READY
        assert (await client.post("/v1/completions", json=asking("legal"))).status_code == 200


async def test_candidates_have_what_room_is_left_and_go_with_the_list(file: Path) -> None:
    write(file, ("legal", "1"), **BESIDE)
    world = World(file, most=1)
    await world.look()
    assert world.states() == [("legal", "1", "loaded"), (CANDIDATE, None, "failed")]
    world = World(file)
    await world.look()
    assert world.engine.adapters == ("legal", CANDIDATE)
    write(file, ("legal", "2"))
    await world.look()
    assert world.engine.adapters == ("legal",)
    assert world.adapters.version("legal") == "2"


def test_a_name_is_an_adapters_or_a_candidates_and_never_both() -> None:
    pinned = {"model": "law", "version": "1"}
    for lists in (
        {"adapters": [{**pinned, "name": CANDIDATE}]},
        {"candidates": [{**pinned, "name": "legal"}]},
    ):
        with pytest.raises(ValueError, match="name"):
            AdapterFile.model_validate(lists)
