"""One file over HTTP: from where it ended, or anew, as the server answers."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from llm_runtime.errors import RegistryUnreachable
from llm_runtime.models import part as part_module
from llm_runtime.models import stream as stream_module
from llm_runtime.models.part import Part
from llm_runtime.models.registry import fatal_of
from llm_runtime.models.stream import Source, download

CONTENT = bytes(range(256)) * 40_000
Fetch = Callable[[Part], None]


class Store(ThreadingHTTPServer):
    """Serves CONTENT: with ranges or without, cut off, changed."""

    daemon_threads = True
    ranges, content, etag, cut_at = True, CONTENT, '"one"', 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str | None] = []
        self.etags: dict[int, str] = {}


class Answer(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        store, asked = self.server, self.headers["Range"]
        store.asked.append(asked)
        start, end = 0, len(store.content)
        if store.ranges and asked and self.headers["If-Range"] in (None, store.etag):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, end) if last else end
        if start >= len(store.content):
            self.send_error(416)
            return
        body = store.content[start:end]
        self.send_response(206 if (start, end) != (0, len(store.content)) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", store.etags.get(start, store.etag))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(store.content)}")
        self.end_headers()
        self.wfile.write(body[: max(0, store.cut_at - start)] if store.cut_at else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetch(store: Store) -> Fetch:
    url = f"http://127.0.0.1:{store.server_port}"
    session = requests.Session()
    session.trust_env = False
    return lambda part: download(
        Source(lambda headers: session.get(url, headers=dict(headers), stream=True, timeout=5)), part
    )


def interrupted(fetch: Fetch, store: Store, folder: Path, at: int) -> Part:
    store.cut_at = at
    with pytest.raises(Exception, match="IncompleteRead") as fault:
        fetch(Part(folder, "weights"))
    assert isinstance(fatal_of(fault.value, "downloading"), RegistryUnreachable)
    store.cut_at = 0
    return Part(folder, "weights")


def check(part: Part, folder: Path) -> None:
    assert part.sha256 == hashlib.sha256(CONTENT).hexdigest()
    part.finish()
    assert (folder / "weights").read_bytes() == CONTENT
    assert [file.name for file in folder.iterdir()] == ["weights"]


def test_a_whole_body_is_hashed_on_the_way(fetch: Fetch, store: Store, tmp_path: Path) -> None:
    part = Part(tmp_path, "weights")
    fetch(part)
    check(part, tmp_path)
    assert store.asked == [None]


def test_a_body_that_broke_off_goes_on_from_there(fetch: Fetch, store: Store, tmp_path: Path) -> None:
    part = interrupted(fetch, store, tmp_path, 3_000_000)
    had = part.safe_bytes
    assert 2_000_000 < had <= 3_000_000
    fetch(part)
    assert store.asked == [None, f"bytes={had}-"]
    check(part, tmp_path)


def test_a_server_without_ranges_sends_it_anew(fetch: Fetch, store: Store, tmp_path: Path) -> None:
    part = interrupted(fetch, store, tmp_path, 3_000_000)
    store.ranges = False
    fetch(part)
    check(part, tmp_path)


def test_a_file_that_has_changed_comes_anew(fetch: Fetch, store: Store, tmp_path: Path) -> None:
    store.content = b"x" * len(CONTENT)
    part = interrupted(fetch, store, tmp_path, 3_000_000)
    store.content, store.etag = CONTENT, '"two"'
    fetch(part)
    check(part, tmp_path)


def test_a_range_behind_the_end_comes_anew(fetch: Fetch, store: Store, tmp_path: Path) -> None:
    store.content = CONTENT * 2
    part = Part(tmp_path, "weights")
    fetch(part)
    store.content = CONTENT
    fetch(part)
    check(part, tmp_path)


def test_what_was_not_forced_to_the_disk_does_not_count(
    fetch: Fetch, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "MARK_BYTES", 2 << 20)
    interrupted(fetch, store, tmp_path, 5_000_000)
    with (tmp_path / ".part-weights").open("r+b") as file:
        file.truncate(1 << 20)
    part = Part(tmp_path, "weights")
    assert part.safe_bytes == 0
    fetch(part)
    check(part, tmp_path)


@pytest.fixture
def in_pieces(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Part]:
    """Downloads CONTENT over four connections, in pieces of a megabyte."""
    for module in (part_module, stream_module):
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 20)
    session = requests.Session()
    session.trust_env = False
    url = f"http://127.0.0.1:{store.server_port}"
    source = Source(lambda headers: session.get(url, headers=dict(headers), stream=True, timeout=5), in_pieces=True)

    def run() -> Part:
        part = Part(tmp_path, "weights", len(CONTENT), connections=4)
        download(source, part)
        return part

    return run


def test_a_large_file_of_a_store_comes_in_pieces(in_pieces: Callable[[], Part], store: Store, tmp_path: Path) -> None:
    check(in_pieces(), tmp_path)
    assert len(store.asked) == 10
    assert store.asked[0] == f"bytes=0-{(1 << 20) - 1}"


def test_pieces_that_broke_off_go_on_behind_the_last_in_order(
    in_pieces: Callable[[], Part], store: Store, tmp_path: Path
) -> None:
    store.cut_at = 5_000_000
    with pytest.raises(Exception, match="IncompleteRead"):
        in_pieces()
    store.cut_at = 0
    assert Part(tmp_path, "weights").safe_bytes == 4 << 20
    store.asked.clear()
    check(in_pieces(), tmp_path)
    assert store.asked[0] == f"bytes={4 << 20}-{(5 << 20) - 1}"


def test_a_store_without_ranges_sends_the_whole_file(
    in_pieces: Callable[[], Part], store: Store, tmp_path: Path
) -> None:
    store.ranges = False
    check(in_pieces(), tmp_path)
    assert len(store.asked) == 1


def test_a_file_that_changes_between_its_pieces_is_not_mixed(in_pieces: Callable[[], Part], store: Store) -> None:
    store.etags = {3 << 20: '"two"'}
    with pytest.raises(RegistryUnreachable, match="has changed in the store"):
        in_pieces()
