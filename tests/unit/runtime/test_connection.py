"""Clients that send too much, too slowly, or something else,
and those that leave or do not listen: on real sockets."""

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from fakes import ScriptedEngine
from harness import KEY, Harness, chat_body
from llm_runtime.connection import Connection
from llm_runtime.contract import ServerConfig
from waiting import eventually

HEAD = f"Host: x\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
PATH = "/v1/chat/completions"
SECONDS = 1.0
"""The patience of a server with bounds."""


@contextmanager
def connected(api: Harness) -> Iterator[socket.socket]:
    url = httpx.URL(api.url)
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        yield connection


def post(extra: str) -> bytes:
    return f"POST {PATH} HTTP/1.1\r\n{HEAD}{extra}\r\n".encode()


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def sent_until_closed(connection: socket.socket, piece: bytes) -> int:
    """How many bytes the other side took before it had enough."""
    sent = 0
    try:
        while sent < 1 << 30:
            sent += connection.send(piece)
    except ConnectionError:
        pass
    return sent


@pytest.fixture
def bounded(live: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """A server whose patience a test can wait for."""
    for bound in ("head_seconds", "leftover_seconds", "stalled_seconds"):
        monkeypatch.setattr(Connection, bound, SECONDS)
    with live(server=ServerConfig(max_request_bytes=1024, body_timeout_seconds=SECONDS)) as api:
        yield api


@pytest.mark.parametrize("kind", ["Content-Length: 500\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_that_does_not_come_is_a_408(bounded: Harness, kind: str) -> None:
    with connected(bounded) as connection:
        connection.sendall(post(kind) + (b'5\r\n{"mod\r\n' if "chunked" in kind else b'{"mod'))
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer
    assert bounded.rows == []


def test_a_body_that_trickles_is_a_408_all_the_same(bounded: Harness) -> None:
    with connected(bounded) as connection:
        connection.sendall(post("Content-Length: 500\r\n"))
        for _ in range(5):
            connection.sendall(b" ")
            time.sleep(0.3 * SECONDS)
        assert received(connection).startswith(b"HTTP/1.1 408")


def test_a_huge_declared_body_is_a_413_and_is_not_read_on(bounded: Harness) -> None:
    began = time.monotonic()
    with connected(bounded) as connection:
        connection.sendall(post("Content-Length: 10000000000\r\n"))
        assert received(connection).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 5 * SECONDS


def test_a_huge_undeclared_body_is_a_413_and_ends_the_connection(bounded: Harness) -> None:
    with connected(bounded) as connection:
        connection.sendall(post("Transfer-Encoding: chunked\r\n"))
        assert sent_until_closed(connection, b"1000\r\n" + b"x" * 4096 + b"\r\n") < 50 << 20


def test_who_expects_to_be_told_hears_413_before_sending_anything(bounded: Harness) -> None:
    with connected(bounded) as connection:
        connection.sendall(post("Content-Length: 5000\r\nExpect: 100-continue\r\n"))
        assert received(connection).startswith(b"HTTP/1.1 413")


def test_who_expects_to_be_told_is_told_to_go_on(bounded: Harness) -> None:
    body = json.dumps(chat_body()).encode()
    with connected(bounded) as connection:
        connection.sendall(
            post(f"Content-Length: {len(body)}\r\nConnection: close\r\nExpect: 100-continue\r\n")
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert received(connection).startswith(b"HTTP/1.1 200")


def test_an_unwanted_body_that_ends_leaves_the_connection_usable(bounded: Harness) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n".encode()
    with connected(bounded) as connection:
        connection.sendall(head)
        assert connection.recv(2000).startswith(b"HTTP/1.1 401")
        connection.sendall(b"1234")
        time.sleep(1.5 * SECONDS)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200")


WHOLE = json.dumps(chat_body()).encode()
LENGTH = f"Content-Length: {len(WHOLE)}\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        f"{LENGTH}Transfer-Encoding: chunked\r\n",
        f"Transfer-Encoding: chunked\r\n{LENGTH}",
        f"{LENGTH}Content-Length: 3\r\n",
        f"Content-Length: {len(WHOLE)}, {len(WHOLE)}\r\n",
        f"Content-Length: +{len(WHOLE)}\r\n",
        f"Content-Length : {len(WHOLE)}\r\n",
        f"X-A: b\r\n c\r\n{LENGTH}",
        f"X-A: a\0b\r\n{LENGTH}",
        f"X-A: b\n{LENGTH}",
        *(
            f"Transfer-Encoding: {coding}\r\n"
            for coding in ("gzip, chunked", "identity, chunked", ", chunked", "chunked, chunked", "chunked, gzip",
                           "gzip", "identity", "chunked;q=1", "\x0bchunked", "chunked\r\nTransfer-Encoding: chunked")
        ),
    ],
)  # fmt: skip
def test_a_body_whose_end_two_readers_may_see_differently_is_a_400_and_the_end(
    live: Any, headers: str
) -> None:
    chunked = "Transfer-Encoding" in headers
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(WHOLE), WHOLE) if chunked else WHOLE
    with live() as api, connected(api) as connection:
        connection.sendall(post(headers) + body + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("chunk", [b"-1\r\n", b"0x2\r\n", b"2;a\nb\r\n", b"2 \n", b"g\r\n"])
def test_a_wrong_chunk_is_a_400_and_the_end(live: Any, chunk: bytes) -> None:
    with live() as api, connected(api) as connection:
        connection.sendall(post("Transfer-Encoding: chunked\r\n") + chunk + b"{}\r\n0\r\n\r\n")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_compressed_body_is_a_415(bounded: Harness) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json", "X-API-Key": KEY}
    content = gzip.compress(json.dumps(chat_body()).encode())
    answer = httpx.post(bounded.url + PATH, content=content, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_head_without_end_is_a_431(bounded: Harness) -> None:
    with connected(bounded) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert sent_until_closed(connection, b"X-Flood: " + b"y" * 1000 + b"\r\n") < 10 << 20


def test_one_header_over_the_limit_is_a_431_that_can_be_read(bounded: Harness) -> None:
    with connected(bounded) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 70_000)
        assert received(connection).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("head", [b"", b"GET /livez HTT", b"GET /livez HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(bounded: Harness, head: bytes) -> None:
    with connected(bounded) as connection:
        connection.sendall(head)
        assert received(connection) == b""


def test_a_second_head_has_its_own_time(bounded: Harness) -> None:
    with connected(bounded) as connection:
        for _ in range(3):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(2000).startswith(b"HTTP/1.1 200")
            time.sleep(0.4 * SECONDS)
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert received(connection) == b""


def test_a_reader_that_takes_nothing_is_cut_off_and_frees_the_engine(
    live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "stalled_seconds", 0.2)
    engine = ScriptedEngine(script=["x" * 1_000_000] * 50, max_model_length=4096)
    body = json.dumps(chat_body(stream=True)).encode()
    with live(engine) as api, connected(api) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post(f"Content-Length: {len(body)}\r\n") + body)
        eventually(lambda: api.rows)
    assert api.rows[0].outcome == "cancelled"
    assert not engine.running


@pytest.mark.parametrize(
    "after", [b"", b"POST", post("Content-Length: 500\r\n"), post("Content-Length: 500\r\n") + b"{"]
)
def test_leaving_before_the_request_is_whole_leaves_no_trace(
    bounded: Harness, after: bytes
) -> None:
    with connected(bounded) as connection:
        connection.sendall(after)
    time.sleep(0.05)
    assert (bounded.rows, bounded.engine.requests) == ([], [])
    assert httpx.get(bounded.url + "/livez", trust_env=False).status_code == 200


def test_leaving_while_the_answer_is_made_is_a_cancelled_row(live: Callable[..., Any]) -> None:
    engine = ScriptedEngine(script=["a"] * 50, token_seconds=0.05)
    body = json.dumps(chat_body()).encode()
    with live(engine) as api:
        with connected(api) as connection:
            connection.sendall(post(f"Content-Length: {len(body)}\r\n") + body)
            eventually(lambda: engine.requests)
            time.sleep(0.05)
        eventually(lambda: api.rows)
    assert api.rows[0].outcome == "cancelled"
    assert not engine.running


def test_an_address_with_too_many_connections_loses_its_own_oldest_that_waits(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, and an answer that is on its way, go on."""
    monkeypatch.setattr(Connection, "most_connections", 5)
    with live(ScriptedEngine(script=["x "] * 60, token_seconds=0.05)) as api, ExitStack() as held:
        url = httpx.URL(api.url)

        def connect(source: str) -> socket.socket:
            connection = socket.create_connection(
                (url.host, url.port), timeout=20, source_address=(source, 0)
            )
            return held.enter_context(connection)

        answered = connect("127.0.0.1")
        body = json.dumps(chat_body(stream=True)).encode()
        answered.sendall(post(f"Content-Length: {len(body)}\r\n") + body)
        assert answered.recv(65536).startswith(b"HTTP/1.1 200")
        crowd = [connect("127.0.0.1") for _ in range(4)]
        other = connect("127.0.0.2")
        assert crowd[0].recv(1) == b""
        latest = connect("127.0.0.1")
        assert crowd[1].recv(1) == b""
        for connection in (*crowd[2:], other, latest):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        said = b""
        while b"[DONE]" not in said:
            more = answered.recv(65536)
            assert more
            said += more
