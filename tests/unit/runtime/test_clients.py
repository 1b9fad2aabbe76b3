"""What the HTTP layer knows of clients, and tells them:
their address behind proxies, limits on each answer, CORS."""

from typing import Any

import httpx
import pytest

from fakes import ScriptedEngine
from harness import KEY, Harness, Rows, chat_body, config
from llm_runtime import errors
from llm_runtime.api.server import make_server
from llm_runtime.api.serving import State, WarmModel
from llm_runtime.app import HttpServer, create_app
from llm_runtime.contract import ServerConfig
from llm_runtime.request import Caller

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "known_as"),
    [
        (("127.0.0.1", "::1"), "127.0.0.1", "203.0.113.7", "ip:203.0.113.7"),
        (("127.0.0.1", "::1"), "198.51.100.2", "203.0.113.7", "ip:198.51.100.2"),
        (("10.0.0.0/8",), "10.2.3.4", "203.0.113.7, 10.9.9.9", "ip:203.0.113.7"),
        (("10.0.0.0/8",), "10.2.3.4", "1.2.3.4, 203.0.113.7", "ip:203.0.113.7"),
        ((), "127.0.0.1", "203.0.113.7", "ip:127.0.0.1"),
    ],
    ids=[
        "a proxy here",
        "a client that lies",
        "two proxies",
        "a client that lies to a proxy",
        "no proxies",
    ],
)
async def test_a_client_is_the_address_that_a_trusted_proxy_vouches_for(
    proxies: tuple[str, ...], peer: str, forwarded: str, known_as: str
) -> None:
    engine = ScriptedEngine()
    rows = Rows()

    async def load() -> WarmModel:
        return WarmModel(engine, engine.codec)

    made = make_server(config(ServerConfig(trusted_proxies=proxies)), load, usage=rows)
    made.serving._serve(made.config, await load())
    made.serving.state = State.READY
    server = HttpServer(create_app(made), "127.0.0.1", 0)
    server.config.load()
    transport = httpx.ASGITransport(server.config.loaded_app, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.post(CHAT, json=chat_body(), headers={"X-Forwarded-For": forwarded})
    assert [row.key_id for row in rows] == [known_as]


class Standing:
    def headers(self) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": "60"}


class Limiter:
    async def count(self, caller: Caller) -> None:
        """Any number."""

    def standing(self, caller: Caller) -> Standing:
        assert caller.id == "web"
        return Standing()


async def test_every_answer_to_a_known_caller_says_where_its_limits_stand(api: Harness) -> None:
    api.put(limiter=Limiter())
    answers = [
        await api.chat(),
        await api.chat(stream=True),
        await api.chat(n=0),
        await api.chat(model="other"),
        await api.client.get("/v1/models"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 200]
    assert {answer.headers.get("x-ratelimit-limit-requests") for answer in answers} == {"60"}
    stranger = await api.client.post(CHAT, json=chat_body(), headers={"X-API-Key": "nobody's"})
    assert "x-ratelimit-limit-requests" not in stranger.headers
    assert "x-ratelimit-limit-requests" not in (await api.client.get("/livez")).headers


async def test_a_refusal_says_when_to_come_back_in_milliseconds_too(run: Any) -> None:
    class Full(ScriptedEngine):
        def generate(self, request: Any) -> Any:
            refusal = errors.QueueFull("full")
            refusal.retry_after_seconds = 0.25
            raise refusal

    async with run(Full()) as api:
        answer = await api.chat()
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("1", "250")


async def test_a_browser_may_ask_without_a_key_and_read_the_headers(run: Any) -> None:
    async with run(server=ServerConfig(cors_origins=("https://app",)), headers={}) as api:
        asked = {
            "Origin": "https://app",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = await api.client.options(CHAT, headers=asked)
        refused = await api.client.post(CHAT, json=chat_body(), headers={"Origin": "https://app"})
        answered = await api.client.post(
            CHAT, json=chat_body(), headers={"Origin": "https://app", "X-API-Key": KEY}
        )
    assert preflight.status_code == 200
    # Without these a browser would hide even the refusal from its page.
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (
        401,
        "https://app",
    )
    assert "x-ratelimit-remaining-tokens" in answered.headers["access-control-expose-headers"]
