"""Management: who may, keys made over HTTP, models brought in, taken away,
and loaded by the first request."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

import httpx
import pytest

from fakes import ScriptedEngine
from harness import Rows, chat_body, config
from llm_runtime import errors
from llm_runtime.api.access import Management
from llm_runtime.api.server import Server, make_server
from llm_runtime.api.serving import State, WarmModel
from llm_runtime.app import create_app
from llm_runtime.auth.callers import KeyChain, SingleKey
from llm_runtime.auth.keys import DatabaseKeys
from llm_runtime.auth.store import NewKey
from llm_runtime.contract import FatalReport, RuntimeConfig, ServerConfig, Tier
from llm_runtime.db.database import Database
from llm_runtime.db.migrate import UpToDate
from llm_runtime.db.tables import usage_daily
from llm_runtime.fetching.progress import Progress
from llm_runtime.limits import Limiter
from postgres import Postgres
from waiting import until

ADMIN = {"X-API-Key": "the-admins-key"}
USER = {"X-API-Key": "a-users-key"}


@dataclass
class Models:
    """What loads models here: engines that say where they come from."""

    fault: errors.Fatal | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[RuntimeConfig] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    engines: list[ScriptedEngine] = field(default_factory=list)
    on_gpu: bool = False

    def __post_init__(self) -> None:
        self.release.set()
        self.fetched.set()

    async def fetch(self, config: RuntimeConfig, progress: Progress, hub_token: str) -> Path:
        self.asked.append(config)
        self.tokens.append(hub_token)
        if not self.fetched.is_set():
            progress(25, 100)
            await self.fetched.wait()
        if isinstance(self.fault, errors.ModelNotFound):
            raise self.fault
        return Path("models") / PurePath(config.model.name).name

    async def start(self, config: RuntimeConfig, folder: Path) -> WarmModel:
        await self.release.wait()
        if self.fault:
            raise self.fault
        engine = ScriptedEngine(script=[folder.name])
        self.engines.append(engine)
        return WarmModel(engine, engine.codec, on_gpu=self.on_gpu, swap=self.start)


@dataclass
class Managed:
    parts: Server
    client: httpx.AsyncClient
    models: Models
    issuer: DatabaseKeys | None

    async def post(
        self, path: str, headers: dict[str, str] = ADMIN, /, **body: Any
    ) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)

    async def says(self, headers: dict[str, str] = USER, **fields: Any) -> tuple[int, str]:
        name = self.parts.config.model.name
        answer = await self.client.post(
            "/v1/chat/completions", json=chat_body(model=name, **fields), headers=headers
        )
        body = answer.json()
        return answer.status_code, (
            body["choices"][0]["message"]["content"] if answer.is_success else str(body["error"])
        )


Serve = Callable[..., AbstractAsyncContextManager[Managed]]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'manage.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.create()


@asynccontextmanager
async def serve(
    url: str | None = None,
    *,
    lazy: bool = False,
    seconds: float = 300,
    admin: bool = True,
    disabled: bool = False,
    managed: bool = True,
    on_gpu: bool = False,
    tiers: Sequence[Tier] = (),
    limiter: Any = None,
) -> AsyncIterator[Managed]:
    chosen = config(
        ServerConfig(lazy_load=lazy, request_timeout_seconds=seconds, drain_seconds=0.2)
    )
    chosen = chosen.model_copy(update={"tiers": tuple(tiers)})
    models = Models(on_gpu=on_gpu)
    database = Database(url) if url else None
    issuer = DatabaseKeys(database) if database else None
    single = [
        SingleKey(USER["X-API-Key"]),
        *([SingleKey(ADMIN["X-API-Key"], admin=True)] if admin else []),
    ]
    keys = KeyChain(*single, issuer) if issuer else KeyChain(*single)
    server = make_server(
        chosen,
        lambda: models.start(chosen, Path(chosen.model.name)),
        None if disabled else keys,
        usage=Rows(),
        management=Management(keys, issuer, models.fetch, models.start) if managed else None,
        database=database,
        limiter=limiter,
        parts=[UpToDate(database), issuer] if database and issuer else [],
    )
    app = create_app(server)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await until(lambda: lazy or server.serving.state is not State.LOADING)
        yield Managed(server, client, models, issuer)


PATHS = ["/generate_apikey", "/load_model", "/unload_model"]


@pytest.mark.parametrize("path", PATHS)
async def test_only_administrators_manage(path: str) -> None:
    async with serve() as server:
        for headers, status in ((USER, 403), ({}, 401), ({"X-API-Key": "wrong"}, 401)):
            answer = await server.client.post(path, content=b"{not json", headers=headers)
            assert answer.status_code == status
        answer = await server.post(path, USER)
        assert "ADMIN_API_KEY" in answer.json()["message"]
        assert answer.json()["error"] == "forbidden"


@pytest.mark.parametrize("path", PATHS)
async def test_without_an_admin_key_the_answer_says_what_to_set(path: str) -> None:
    async with serve(admin=False) as server:
        for headers in (USER, {}, {"X-API-Key": "wrong"}):
            answer = await server.post(path, headers)
            assert answer.status_code == 403
            assert "ADMIN_API_KEY" in answer.json()["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_where_an_operator_manages_nobody_else_does(path: str) -> None:
    async with serve(managed=False) as server:
        answer = await server.post(path)
        assert (answer.status_code, answer.json()["details"]["code"]) == (404, "management_off")
        assert "operator" in answer.json()["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_without_authentication_managing_still_needs_the_admin_key(path: str) -> None:
    async with serve(disabled=True) as server:
        assert (await server.says({}))[0] == 200
        assert (await server.post(path, {})).status_code == 401
        assert (await server.post(path)).status_code in (200, 400)


async def test_a_key_made_over_http_works_at_once_and_has_its_end(url: str) -> None:
    gold = Tier(name="gold", requests_per_minute=9)
    async with serve(url, tiers=[gold]) as server:
        answer = await server.post(
            "/generate_apikey", username="myuser", role="gold", expires_in_days=1
        )
        made = answer.json()
        assert (answer.status_code, made["username"], made["role"]) == (200, "myuser", "gold")
        assert made["api_key"].startswith(f"llmk_{made['id']}_")
        key = {"Authorization": f"Bearer {made['api_key']}"}
        assert (await server.says(key))[0] == 200
        mine = (await server.client.get("/v1/key", headers=key)).json()["data"]
        assert (mine["id"], mine["label"], mine["owner"], mine["tier"]) == (
            made["id"],
            "myuser",
            "myuser",
            "gold",
        )
        end = datetime.fromisoformat(made["expires_at"])
        assert abs(end - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=1)
        assert (await server.post("/unload_model", key)).status_code == 403


async def test_the_body_of_a_document_in_the_field_makes_a_key(url: str) -> None:
    async with serve(url) as server:
        assert (await server.post("/generate_apikey", username="myuser")).json()["api_key"]


async def test_an_admin_key_of_the_database_manages_too(url: str) -> None:
    async with serve(url, admin=False) as server:
        assert server.issuer
        issued = await server.issuer.store.create(NewKey("boss", admin=True))
        await server.issuer.poll()
        answer = await server.post("/generate_apikey", {"X-API-Key": issued.key}, username="myuser")
        assert answer.status_code == 200
        assert (await server.post("/unload_model", {"X-API-Key": "wrong"})).status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "username"),
        ({"username": ""}, "username"),
        ({"username": "a\nb"}, "username"),
        ({"username": "x" * 201}, "username"),
        ({"username": "x", "role": "nobody"}, "role"),
        ({"username": "x", "expires_in_days": 0}, "expires_in_days"),
        ({"username": "x", "expires_in_days": 1e9}, "expires_in_days"),
        ({"username": "x", "admin": True}, "admin"),
    ],
)
async def test_a_wrong_wish_for_a_key_is_named(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    async with serve(f"sqlite:///{tmp_path / 'm.db'}") as server:
        answer = await server.post("/generate_apikey", **body)
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)


async def test_keys_need_a_database() -> None:
    async with serve() as server:
        answer = await server.post("/generate_apikey", username="myuser")
        assert answer.status_code == 403
        assert "DATABASE_URL" in answer.json()["message"]


async def test_a_database_that_is_away_is_503_and_known_keys_still_work() -> None:
    async with serve("postgresql://nobody@127.0.0.1:1/none") as server:
        assert (await server.says())[0] == 200
        assert (await server.post("/generate_apikey", username="myuser")).status_code == 503
        assert (await server.says({"X-API-Key": "who-knows"}))[0] == 503
        mine = (await server.client.get("/v1/key", headers=USER)).json()["data"]
        assert mine["usage_monthly"] is None


async def test_a_folder_takes_the_place_of_the_model(tmp_path: Path) -> None:
    async with serve() as server:
        before = server.models.engines[0]
        (tmp_path / "llama").mkdir()
        answer = await server.post(
            "/load_model", model_name=str(tmp_path / "llama"), device="cpu", hf_token=None
        )
        assert answer.status_code == 200
        assert answer.json()["model_name"] == "llama"
        assert await server.says() == (200, "llama")
        named = await server.post("/load_model", model_name="mine", path=str(tmp_path / "llama"))
        assert (named.json()["model_name"], server.models.asked[-1].model.path) == (
            "mine",
            str(tmp_path / "llama"),
        )
        assert not before.closed, "the engine's process goes on with the new model"
        assert (await server.post("/load_model", model_name="support-bot")).json()[
            "model_version"
        ] == "3"
        assert await server.says() == (200, "support-bot")


async def test_a_version_of_mlflow_takes_the_place_of_the_model() -> None:
    async with serve() as server:
        answer = await server.post("/load_model", model_name="other", model_version="7")
        assert (answer.status_code, answer.json()["model_version"]) == (200, "7")
        asked = server.models.asked[0].model.mlflow
        assert asked
        assert (asked.tracking_uri, asked.name, asked.version) == ("http://mlflow", "other", "7")


@pytest.mark.parametrize(
    ("asked", "name", "uri"),
    [
        ("acme/bot", "acme/bot", "hf://acme/bot"),
        ("acme/bot@v2", "acme/bot", "hf://acme/bot@v2"),
        ("hf://acme/bot@v2", "acme/bot", "hf://acme/bot@v2"),
        ("models:/bot/3", "bot", "models:/bot/3"),
        ("models:/bot@champion", "bot", "models:/bot@champion"),
        ("models:/m-0123abcd", "m-0123abcd", "models:/m-0123abcd"),
        ("s3://bucket/some/model", "model", "s3://bucket/some/model"),
    ],
)
async def test_a_model_by_its_uri_takes_the_place_of_the_model(
    asked: str, name: str, uri: str
) -> None:
    async with serve() as server:
        answer = await server.post("/load_model", model_name=asked, hf_token=None)
        assert (answer.status_code, answer.json()["model_name"]) == (200, name)
        model = server.models.asked[0].model
        assert (model.uri, model.mlflow, model.tracking_uri) == (uri, None, "http://mlflow")
        assert await server.says() == (200, name.rpartition("/")[2])


async def test_what_is_no_uri_of_the_hub_says_how_to_write_one() -> None:
    async with serve() as server:
        answer = await server.post("/load_model", model_name="hf://bot")
        assert (answer.status_code, "hf://org/name@revision" in answer.json()["message"]) == (
            400,
            True,
        )


async def test_the_token_goes_with_one_download_and_is_kept_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve() as server:
        assert (
            await server.post("/load_model", model_name="acme/bot", hf_token="hf_secret")
        ).status_code == 200
        assert (await server.post("/load_model", model_name="acme/bot")).status_code == 200
        assert server.models.tokens == ["hf_secret", ""]
        assert "hf_secret" not in repr(server.parts.config) + caplog.text
        assert "hf_secret" not in (await server.client.get("/status")).text


async def test_while_a_model_is_on_its_way_the_status_says_how_far_and_another_one_gets_409() -> (
    None
):
    async def loading() -> Any:
        return (await server.client.get("/status")).json()["loading"]

    async with serve() as server:
        server.models.fetched.clear()
        server.models.release.clear()
        first = asyncio.create_task(server.post("/load_model", model_name="acme/bot"))
        while "percent" not in (far := await loading() or {}):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (far["model_name"], far["step"]) == ("acme/bot", "fetching")
        assert (far["percent"], far["bytes"], far["total_bytes"]) == (25, 25, 100)
        second = await server.post("/load_model", model_name="other", model_version="7")
        assert (second.status_code, second.json()["details"]["code"]) == (409, "load_in_progress")
        assert "acme/bot" in second.json()["message"]
        assert await server.says() == (200, "support-bot"), "it serves meanwhile"
        server.models.fetched.set()
        while (await loading())["step"] != "loading":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        server.models.release.set()
        assert (await first).status_code == 200
        assert await loading() is None
        assert (
            await server.post("/load_model", model_name="other", model_version="7")
        ).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (errors.ModelNotFound("no such version"), 404),
        (errors.ModelCorrupt("short file"), 400),
        (errors.OutOfMemory("too large"), 503),
        (errors.RegistryUnreachable("no answer"), 503),
        (errors.EngineFailed(FatalReport(reason="ModelUnsupported", message="pickle")), 400),
    ],
)
async def test_a_model_that_does_not_load_is_a_refusal_and_the_old_one_serves_on(
    fault: errors.Fatal, status: int
) -> None:
    async with serve() as server:
        server.models.fault = fault
        answer = await server.post("/load_model", model_name="other", model_version="7")
        assert (answer.status_code, answer.json()["details"]["code"]) == (status, fault.reason)
        assert str(fault) in answer.json()["message"]
        assert await server.says() == (200, "support-bot")
        assert (await server.client.get("/readyz")).status_code == 200
        await server.post("/unload_model")
        assert (
            await server.post("/load_model", model_name="other", model_version="7")
        ).status_code == status
        assert server.parts.serving.state is State.UNLOADED
        server.models.fault = None
        assert (
            await server.post("/load_model", model_name="other", model_version="7")
        ).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "model_name"),
        ({"model_name": "m", "hf_token": "hf_secret"}, "hf_token"),
        ({"model_name": "support-bot", "hf_token": "hf_secret"}, "hf_token"),
        ({"model_name": "acme/bot", "path": "/m", "hf_token": "hf_secret"}, "hf_token"),
        ({"model_name": "acme/bot", "hf_token": "hf_secret\nX-Other: 1"}, "hf_token"),
        ({"model_name": "acme/bot", "hf_token": {"token": "hf_secret"}}, "hf_token"),
        ({"model_name": "acme/bot", "model_version": "3"}, "model_version"),
        ({"model_name": "m", "device": "cuda"}, "device"),
        ({"model_name": "m", "device": "mps"}, "device"),
        ({"model_name": "m", "model_version": "newest"}, "model_version"),
        ({"model_name": "x' OR name LIKE '%", "model_version": "1"}, "model_name"),
        ({"model_name": "m", "trust": True}, "trust"),
    ],
)
async def test_a_wrong_wish_for_a_model_is_named_and_changes_nothing(
    body: dict[str, Any], field: str
) -> None:
    async with serve() as server:
        answer = await server.post("/load_model", **body)
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, field)
        assert "hf_secret" not in answer.text
        assert await server.says() == (200, "support-bot")


async def test_an_unloaded_model_is_freed_and_can_be_loaded_again() -> None:
    async with serve() as server:
        answer = await server.post("/unload_model")
        assert (answer.status_code, answer.json()["message"]) == (
            200,
            "Model support-bot is unloaded.",
        )
        assert server.models.engines[0].closed
        refused = await server.client.post("/v1/chat/completions", json=chat_body(), headers=USER)
        assert (refused.status_code, bool(refused.headers["retry-after"])) == (503, True)
        assert "POST /load_model" in refused.text
        ready = await server.client.get("/readyz")
        assert (ready.status_code, "POST /load_model" in ready.text) == (503, True)
        health = (await server.client.get("/health")).json()
        assert (health["model_status"], health["model_loaded"]) == ("unloaded", False)
        assert (await server.client.get("/livez")).status_code == 200
        assert (await server.client.get("/v1/models", headers=USER)).json()["data"] == []
        assert "model_loaded 0.0" in (await server.client.get("/metrics")).text
        assert (await server.post("/unload_model")).json() == {"message": "No model is loaded."}
        assert (
            await server.post("/load_model", model_name="support-bot", device="cpu")
        ).status_code == 200
        assert await server.says() == (200, "support-bot")
        assert (await server.client.get("/readyz")).json() == {"status": "ready"}


async def test_without_a_model_the_device_may_be_chosen() -> None:
    async with serve(on_gpu=True) as server:
        refused = await server.post("/load_model", model_name="support-bot", device="cpu")
        assert (refused.status_code, "/unload_model" in refused.text) == (400, True)
        await server.post("/unload_model")
        server.models.on_gpu = False
        answer = await server.post("/load_model", model_name="support-bot", device="cpu")
        assert (answer.json()["device"], server.models.asked[-1].engine.device) == ("cpu", "cpu")


async def test_running_requests_may_end_before_their_model_goes() -> None:
    async with serve() as server:
        server.models.engines[0].token_seconds = 0.1
        running = asyncio.create_task(server.says())
        await asyncio.sleep(0.03)
        await server.post("/unload_model")
        assert await running == (200, "support-bot")


async def test_the_first_requests_wait_for_one_lazy_load() -> None:
    async with serve(lazy=True) as server:
        server.models.release.clear()
        ready = await server.client.get("/readyz")
        assert (ready.status_code, "first request" in ready.json()["reason"]) == (200, True)
        assert (await server.client.get("/health")).json()["model_loaded"] is False
        assert (await server.says({"X-API-Key": "wrong"}))[0] == 401
        assert server.parts.serving.state is State.IDLE, "nobody without a key has it loaded"
        waiting = [asyncio.create_task(server.says()) for _ in range(5)]
        await asyncio.sleep(0.02)
        assert (await server.client.get("/readyz")).status_code == 503
        server.models.release.set()
        assert [await answer for answer in waiting] == [(200, "support-bot")] * 5
        assert len(server.models.engines) == 1
        assert (await server.client.get("/readyz")).json() == {"status": "ready"}


async def test_a_request_waits_for_a_lazy_load_no_longer_than_a_request_may_take() -> None:
    async with serve(lazy=True, seconds=0.05) as server:
        server.models.release.clear()
        began = time.monotonic()
        assert (await server.says())[0] == 503
        assert time.monotonic() - began < 1
        server.models.release.set()
        await asyncio.sleep(0.01)
        assert (await server.says())[0] == 200, "the load went on"


async def test_a_lazy_load_that_fails_answers_and_ends_the_server_with_its_reason() -> None:
    async with serve(lazy=True) as server:
        server.models.fault = errors.ModelCorrupt("short file")
        ended: list[bool] = []
        server.parts.serving.on_failure = lambda: ended.append(True)
        status, text = await server.says()
        assert (status, "ModelCorrupt" in text, ended) == (503, True, [True])


async def test_an_administrator_may_be_faster_than_the_first_request() -> None:
    async with serve(lazy=True) as server:
        assert (
            await server.post("/load_model", model_name="other", model_version="1")
        ).status_code == 200
        assert await server.says() == (200, "other")
        assert len(server.models.engines) == 1


async def test_a_key_can_see_its_limits_and_what_it_has_used(url: str) -> None:
    tier = Tier(name="standard", requests_per_minute=60, tokens_per_month=1000)
    async with serve(url, tiers=[tier], limiter=Limiter()) as server:
        assert server.parts.database
        today = datetime.now(UTC).date()
        earlier = today.replace(day=1) if today.day > 1 else today
        rows = [(today, 100, "m"), (today, 10, "other"), (earlier - timedelta(days=1), 9999, "m")]
        rows += [(earlier, 5, "third")]
        same = {"key_id": "api-key", "adapter": "", "key_name": "API_KEY", "failed": 0, "cached": 0}
        async with server.parts.database.begin() as connection:
            for day, tokens, model in rows:
                counted = {"prompt_tokens": tokens, "completion_tokens": tokens, "requests": 2}
                values = {
                    **same,
                    **counted,
                    "day": day,
                    "model": model,
                    "last_at": datetime.now(UTC),
                }
                await connection.execute(usage_daily.insert().values(values))
        mine = (await server.client.get("/v1/key", headers=USER)).json()["data"]
    month = 230
    assert mine["usage_monthly"] == month
    assert mine["usage_daily"] == (month if earlier == today else 220)
    assert mine["requests_monthly"] == 6
    assert (mine["limit"], mine["limit_remaining"], mine["limit_reset"]) == (
        1000,
        1000 - month,
        "monthly",
    )
    assert (mine["id"], mine["label"], mine["tier"], mine["is_admin"]) == (
        "api-key",
        "API_KEY",
        "standard",
        False,
    )
    assert mine["limits"]["requests_per_minute"] == 60
    assert mine["standing"]["requests_per_minute"]["remaining"] == 60
    assert mine["standing"]["tokens_per_month"]["limit"] == 1000
    assert "tokens_per_minute" not in mine["standing"]


async def test_a_key_for_some_adapters_sees_and_uses_only_these(tmp_path: Path) -> None:
    async with serve(f"sqlite:///{tmp_path / 'm.db'}") as server:
        assert server.issuer
        server.models.engines[0].adapters = ("legal", "sales")
        issued = await server.issuer.store.create(NewKey("lawyers", adapters=("legal",)))
        await server.issuer.poll()
        key = {"X-API-Key": issued.key}
        names = [
            model["id"]
            for model in (await server.client.get("/v1/models", headers=key)).json()["data"]
        ]
        assert names == ["support-bot", "support-bot:legal"]
        assert (
            await server.client.get("/v1/models/support-bot:sales", headers=key)
        ).status_code == 404
        for path, body in (
            ("/v1/chat/completions", chat_body(model="support-bot:sales")),
            ("/v1/completions", {"model": "support-bot:sales", "prompt": "a"}),
        ):
            answer = await server.client.post(path, json=body, headers=key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            guessed = await server.client.post(
                path, json={**body, "model": "support-bot:guess"}, headers=key
            )
            assert guessed.text == answer.text.replace("support-bot:sales", "support-bot:guess")
            assert "sales" not in guessed.text
            allowed = await server.client.post(
                path, json={**body, "model": "support-bot:legal"}, headers=key
            )
            assert allowed.status_code == 200
            assert (await server.client.post(path, json=body, headers=USER)).status_code == 200


async def test_of_two_different_keys_the_bearer_counts(tmp_path: Path) -> None:
    async with serve() as server:
        both = {"Authorization": "Bearer a-users-key", "X-API-Key": "the-admins-key"}
        assert (await server.client.get("/v1/key", headers=both)).json()["data"]["id"] == "api-key"


async def test_a_pepper_that_is_not_that_of_the_keys_ends_the_server(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'm.db'}"
    async with serve(url) as server:
        await server.post("/generate_apikey", username="myuser")
    database = Database(url)
    issuer = DatabaseKeys(database, "another")
    ended: list[bool] = []
    server = make_server(config(), never, issuer, parts=[UpToDate(database), issuer])
    server.serving.on_failure = lambda: ended.append(True)
    app = create_app(server)
    async with app.router.lifespan_context(app):
        assert ended
        failure = server.serving.failure
        assert failure
        assert (failure.reason, "KEY_PEPPER" in failure.message) == ("ConfigInvalid", True)


async def never() -> WarmModel:
    raise AssertionError
