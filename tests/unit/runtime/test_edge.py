"""The edge of HTTP: what browsers, proxies,
probes and old clients do before any endpoint is reached."""

import json
import re
import socket
from typing import Any

import httpx
import pytest

from fakes import ScriptedEngine
from harness import KEY, Harness, chat_body, config, events
from llm_runtime.api.answers import OWN_PATHS, is_anthropics
from llm_runtime.api.server import make_server
from llm_runtime.api.serving import WarmModel
from llm_runtime.app import HttpServer, create_app
from llm_runtime.common.aside import in_thread
from llm_runtime.contract import ServerConfig

ORIGIN = "https://chat.example.com"
STAINLESS = ",".join(
    f"x-stainless-{what}"
    for what in (
        "os",
        "lang",
        "arch",
        "runtime",
        "runtime-version",
        "package-version",
        "retry-count",
        "timeout",
    )
)


@pytest.mark.parametrize(
    "headers",
    [
        f"authorization,content-type,{STAINLESS}",
        "openai-organization,x-title,http-referer",
        "traceparent",
    ],
)
async def test_a_page_of_a_named_origin_may_send_any_header(run: Any, headers: str) -> None:
    async with run(server=ServerConfig(cors_origins=(ORIGIN,))) as api:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
        told = await api.client.options("/v1/chat/completions", headers={"Origin": ORIGIN, **asks})
        other = await api.client.options(
            "/v1/chat/completions", headers={"Origin": "https://evil.example", **asks}
        )
    assert (told.status_code, told.headers["access-control-allow-origin"]) == (200, ORIGIN)
    allowed = {name.strip() for name in told.headers["access-control-allow-headers"].split(",")}
    assert allowed >= set(headers.split(","))
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_idle_connections_are_kept_longer_than_proxies_keep_theirs() -> None:
    def keeps(server: ServerConfig) -> float:
        engine = ScriptedEngine()
        made = make_server(config(server), in_thread(lambda: WarmModel(engine, engine.codec)), None)
        return HttpServer(create_app(made), "127.0.0.1", 0).config.timeout_keep_alive

    assert keeps(ServerConfig()) > 90, (
        "Go's transport keeps connections for 90 s, load balancers for 60 or 75"
    )
    assert keeps(ServerConfig(keep_alive_seconds=700)) == 700


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_only_a_client_that_knows_chunks_gets_them(live: Any, version: str) -> None:
    body = json.dumps(chat_body(stream=True)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\nConnection: close\r\nX-API-Key: {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with live() as api:
        url = httpx.URL(api.url)
        with socket.create_connection((url.host, url.port), timeout=20) as connection:
            connection.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    headers, _, content = answer.decode().partition("\r\n\r\n")
    assert ("transfer-encoding: chunked" in headers.lower()) is (version == "1.1")
    assert content.startswith("data: ") is (version == "1.0")
    assert events(content)[-1] == "[DONE]"


OPENAIS = [
    "/v1/responses/x", "/v1/moderations", "/v1/audio/speech", "/v1/images/generations", "/v1/files", "/v1/models/none",
    "/v1", "/v1/chat/other", "/v1/completions/x", "/v1/v1/chat/completions", "/chat/completions", "/embeddings",
]  # fmt: skip


@pytest.mark.parametrize("path", OPENAIS)
async def test_every_path_of_openais_has_its_errors(api: Harness, path: str) -> None:
    for answer in (await api.client.post(path, json={}), await api.client.get(path)):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["message"]
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_path_that_is_not_there_says_what_is(api: Harness) -> None:
    told = (await api.client.post("/v1/moderations", json={})).json()["error"]["message"]
    assert "/v1/chat/completions" in told
    assert "/v1/responses" in told
    assert (
        "base URL end in /v1"
        in (await api.client.post("/chat/completions", json={})).json()["error"]["message"]
    )
    assert (await api.client.post("/nothing", json={})).json()["error"] == "not_found"


async def test_the_paths_of_other_dialects_below_v1_are_known(api: Harness) -> None:
    described = (await api.client.get("/openapi.json")).json()["paths"]
    below = {path: operations for path, operations in described.items() if path.startswith("/v1")}
    others = {
        path
        for path, operations in below.items()
        if "OpenAI" not in next(iter(operations.values()))["tags"]
    }
    assert others - {path for path in others if is_anthropics(path)} == OWN_PATHS


async def test_a_slash_at_the_end_changes_nothing(api: Harness) -> None:
    chat = await api.client.post("/v1/chat/completions/", json=chat_body())
    assert chat.json()["choices"][0]["message"]["content"] == "Hello there!"
    assert (
        await api.client.post("/v1/completions//", json={"model": "support-bot", "prompt": "a"})
    ).status_code == 200
    assert (await api.client.post("/predict/", json={"prompt": "a"})).status_code == 200
    assert [model["id"] for model in (await api.client.get("/v1/models/")).json()["data"]] == [
        "support-bot"
    ]
    for path in ("/livez/", "/readyz/", "/health/", "/metrics/", "/docs/"):
        assert (await api.client.get(path)).status_code == 200, path


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/metrics", "/info", "/v1/models", "/docs"]
)
def test_head_is_get_without_a_body(live: Any, path: str) -> None:
    with live() as api:
        headers = {"X-API-Key": KEY}
        head = httpx.head(api.url + path, headers=headers, trust_env=False)
        get = httpx.get(api.url + path, headers=headers, trust_env=False)
        again = httpx.head(api.url + "/nothing", trust_env=False)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert (again.status_code, again.content) == (404, b"")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_page_loads_nothing_from_elsewhere(api: Harness, path: str) -> None:
    page = await api.client.get(path)
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    named = re.findall(r"""(?:src|href|spec-url)="([^"]+)"|url: '([^']+)'""", page.text)
    loaded = [one or other for one, other in named]
    assert len(loaded) >= 3
    for address in loaded:
        found = await api.client.get(address)
        assert (found.status_code, bool(found.content)) == (200, True), address
    sources = re.findall(r"(\S+-src) ([^;]+)", page.headers["content-security-policy"])
    assert {"default-src", "script-src", "connect-src"} <= {directive for directive, _ in sources}
    assert not [value for _, value in sources if "//" in value or "*" in value], (
        "a browser must refuse other servers"
    )


async def test_no_other_file_lies_beside_a_pages_own(api: Harness) -> None:
    for name in ("none.js", "../core.py", "..%2fcore.py"):
        assert (await api.client.get(f"/docs/assets/{name}")).status_code == 404, name


async def test_pages_and_their_document_are_counted_as_what_they_are(api: Harness) -> None:
    for path in ("/docs", "/redoc", "/openapi.json", "/"):
        assert (await api.client.get(path)).status_code == 200
        assert f'endpoint="{path}"' in (await api.client.get("/metrics")).text


async def test_the_root_says_where_to_go_on(api: Harness) -> None:
    told = (await api.client.get("/", headers={"X-API-Key": ""})).json()
    assert told["model"] == "support-bot"
    assert told["ready"] is True
    assert (await api.client.get(f"{told['openai']}/models")).status_code == 200
    for name in ("docs", "health"):
        assert (await api.client.get(told[name])).status_code == 200


async def test_head_of_what_only_takes_posts_is_a_405_and_get_allows_head(api: Harness) -> None:
    told = await api.client.head("/v1/chat/completions")
    assert (told.status_code, told.headers["allow"]) == (405, "POST")
    assert (await api.client.post("/health")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a " * 100}]},
        {"messages": [{"role": "user", "content": "a " * 60}], "max_tokens": 60},
    ],
)
async def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for(
    api: Harness, fields: Any
) -> None:
    error = (await api.chat(**fields)).json()["error"]
    assert error["code"] == "context_length_exceeded"


async def test_an_overflow_of_the_context_has_openais_words(api: Harness) -> None:
    error = (await api.chat(messages=[{"role": "user", "content": "a " * 100}])).json()["error"]
    assert error["message"].startswith(
        "This model's maximum context length is 64 tokens. However, your prompt has 101"
    )
    error = (await api.chat(messages=[{"role": "user", "content": "a" * 40_000}])).json()["error"]
    assert "string too long. Expected a string with maximum length 32000" in error["message"]
