"""One file over HTTP: from where it ended, or anew, as the server answers."""

import base64
import hashlib
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from llm_runtime.errors import ModelCorrupt, RegistryUnreachable
from llm_runtime.fetching import part as part_module
from llm_runtime.fetching import stream as stream_module
from llm_runtime.fetching.part import Part
from llm_runtime.fetching.registry import fatal_of
from llm_runtime.fetching.stream import FileRequest, download

CONTENT = bytes(range(256)) * 40_000
Fetch = Callable[[Part], None]


class Store(ThreadingHTTPServer):
    """Serves CONTENT: with ranges or without, cut off, changed;
    /hub says `hub_says` and redirects."""

    daemon_threads = True
    ranges = True
    knows_if_range = True
    content = CONTENT
    etag = '"one"'
    modified = ""
    cut_at = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str | None] = []
        self.etags: dict[int, str] = {}
        self.says: dict[str, str] = {}
        self.hub_says: dict[str, str] = {}


class Answer(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        store = self.server
        asked = self.headers["Range"]
        if self.path == "/hub":
            self.send_response(302)
            self._headers({"Location": "/store", "Content-Length": "0", **store.hub_says})
            return
        store.asked.append(asked)
        start = 0
        end = len(store.content)
        as_asked = not store.knows_if_range or self.headers["If-Range"] in (
            None,
            store.etag or store.modified,
        )
        if store.ranges and asked and as_asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first)
            end = min(int(last) + 1, end) if last else end
        if start >= len(store.content):
            self.send_error(416)
            return
        body = store.content[start:end]
        self.send_response(206 if (start, end) != (0, len(store.content)) else 200)
        named = {"ETag": store.etags.get(start, store.etag), "Last-Modified": store.modified}
        self._headers({
            "Content-Length": str(len(body)),
            "Content-Range": f"bytes {start}-{end - 1}/{len(store.content)}",
            **{name: value for name, value in named.items() if value},
            **store.says,
        })  # fmt: skip
        self.wfile.write(body[: max(0, store.cut_at - start)] if store.cut_at else body)

    def _headers(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

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
    url = f"http://127.0.0.1:{store.server_port}/hub"
    session = requests.Session()
    session.trust_env = False
    return lambda part: download(
        FileRequest(
            lambda headers: session.get(url, headers=dict(headers), stream=True, timeout=5)
        ),
        part,
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


def test_a_body_that_broke_off_goes_on_from_there(
    fetch: Fetch, store: Store, tmp_path: Path
) -> None:
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
    store.content = CONTENT
    store.etag = '"two"'
    fetch(part)
    check(part, tmp_path)


MONDAY = "Mon, 05 Jan 2026 10:00:00 GMT"
TUESDAY = "Tue, 06 Jan 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("before", "after", "length"),
    [
        (('"one"', ""), ('"two"', ""), len(CONTENT)),
        (('"one"', ""), ("", ""), len(CONTENT)),
        (('W/"one"', ""), ('W/"two"', ""), len(CONTENT)),
        (('W/"one"', ""), ('W/"one"', ""), len(CONTENT)),
        (("", MONDAY), ("", TUESDAY), len(CONTENT)),
        (("", MONDAY), ("", MONDAY), len(CONTENT) + 1),
        (("", ""), ("", ""), len(CONTENT)),
    ],
)
def test_two_versions_of_a_file_are_not_joined_by_a_store_that_ignores_if_range(
    fetch: Fetch,
    store: Store,
    tmp_path: Path,
    before: tuple[str, str],
    after: tuple[str, str],
    length: int,
) -> None:
    store.knows_if_range, store.content, (store.etag, store.modified) = False, b"x" * length, before
    interrupted(fetch, store, tmp_path, 3_000_000)
    store.content, (store.etag, store.modified) = CONTENT, after
    part = Part(tmp_path, "weights")
    fetch(part)
    check(part, tmp_path)


def test_a_file_that_only_its_date_tells_from_others_goes_on(
    fetch: Fetch, store: Store, tmp_path: Path
) -> None:
    store.etag = ""
    store.modified = MONDAY
    part = interrupted(fetch, store, tmp_path, 3_000_000)
    had = part.safe_bytes
    fetch(part)
    assert store.asked == [None, f"bytes={had}-"]
    check(part, tmp_path)


def digest(name: str, content: bytes = CONTENT) -> str:
    return base64.b64encode(hashlib.new(name, content).digest()).decode()


CRC32 = base64.b64encode(zlib.crc32(CONTENT).to_bytes(4, "big")).decode()
S3 = {"x-amz-request-id": "1"}
PROMISES = [
    {"x-amz-checksum-sha256": digest("sha256")},
    {"x-amz-checksum-sha1": digest("sha1")},
    {"x-amz-checksum-crc32": CRC32},
    {"Content-MD5": digest("md5")},
    {"X-Linked-ETag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'},
    {**S3, "ETag": f'"{hashlib.md5(CONTENT).hexdigest()}"'},
]


@pytest.mark.parametrize("says", PROMISES)
def test_the_whole_is_what_the_store_promised(
    fetch: Fetch, store: Store, tmp_path: Path, says: dict[str, str]
) -> None:
    store.etag = says.get("ETag", store.etag)
    store.says = {k: v for k, v in says.items() if k != "ETag"}
    part = Part(tmp_path, "weights")
    fetch(part)
    check(part, tmp_path)
    store.content = CONTENT[:-1] + b"x"
    with pytest.raises(
        ModelCorrupt, match=r"weights has (sha256|sha1|crc32|md5):\w+, but .* promised \w+:"
    ):
        fetch(Part(tmp_path, "weights"))
    assert not (tmp_path / ".part-weights").exists()


def test_what_the_hub_promises_before_it_redirects_counts(
    fetch: Fetch, store: Store, tmp_path: Path
) -> None:
    store.hub_says = {"X-Linked-ETag": hashlib.sha256(b"other").hexdigest()}
    with pytest.raises(ModelCorrupt, match="promised sha256:"):
        fetch(Part(tmp_path, "weights"))


def test_a_promise_of_the_first_answer_holds_for_what_goes_on(
    fetch: Fetch, store: Store, tmp_path: Path
) -> None:
    store.says = {"Content-MD5": digest("md5", b"other")}
    interrupted(fetch, store, tmp_path, 3_000_000)
    store.says = {"Content-MD5": digest("md5")}  # Of a range: none of the whole.
    with pytest.raises(ModelCorrupt, match="promised md5:"):
        fetch(Part(tmp_path, "weights"))


@pytest.mark.parametrize(
    "says",
    [
        {
            "x-amz-checksum-sha256": f"{digest('sha256', b'other')}-3",
            "ETag": '"0123456789abcdef0123456789abcdef-3"',
        },
        {"x-amz-checksum-crc32": "AAAAAA==", "ETag": '"0123456789abcdef0123456789abcdef-3"'},
        {
            **S3,
            "x-amz-server-side-encryption": "aws:kms",
            "ETag": '"0123456789abcdef0123456789abcdef"',
        },
        {"ETag": '"0123456789abcdef0123456789abcdef"'},
        {"X-Linked-ETag": '"0123456789abcdef0123456789abcdef01234567"'},
        {"Content-MD5": "no digest"},
    ],
)
def test_what_is_no_digest_of_the_whole_is_no_promise(
    fetch: Fetch, store: Store, tmp_path: Path, says: dict[str, str]
) -> None:
    store.etag = says.get("ETag", store.etag)
    store.says = {k: v for k, v in says.items() if k != "ETag"}
    part = Part(tmp_path, "weights")
    fetch(part)
    check(part, tmp_path)


def test_a_file_that_is_not_as_long_as_its_listing_says_is_told_at_once(
    fetch: Fetch, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ModelCorrupt, match="weights has 10240000 bytes, its listing says 10240001"):
        fetch(Part(tmp_path, "weights", len(CONTENT) + 1))
    assert not (tmp_path / ".part-weights").exists()


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
    source = FileRequest(
        lambda headers: session.get(url, headers=dict(headers), stream=True, timeout=5),
        in_pieces=True,
    )

    def run() -> Part:
        part = Part(tmp_path, "weights", len(CONTENT), connections=4)
        download(source, part)
        return part

    return run


def test_a_large_file_of_a_store_comes_in_pieces(
    in_pieces: Callable[[], Part], store: Store, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize(("etag", "modified"), [('W/"one"', MONDAY), ("", "")])
def test_pieces_that_nothing_tells_from_those_of_another_file_are_not_asked_for(
    in_pieces: Callable[[], Part], store: Store, tmp_path: Path, etag: str, modified: str
) -> None:
    store.etag = etag
    store.modified = modified
    check(in_pieces(), tmp_path)
    assert store.asked == [f"bytes=0-{(1 << 20) - 1}", None]


def test_pieces_of_a_file_that_changed_since_come_anew(
    in_pieces: Callable[[], Part], store: Store, tmp_path: Path
) -> None:
    store.knows_if_range = False
    store.content = b"x" * len(CONTENT)
    store.cut_at = 5_000_000
    with pytest.raises(Exception, match="IncompleteRead"):
        in_pieces()
    store.content = CONTENT
    store.etag = '"two"'
    store.cut_at = 0
    check(in_pieces(), tmp_path)


def test_pieces_together_are_what_the_store_promised(
    in_pieces: Callable[[], Part], store: Store
) -> None:
    store.says = {"X-Linked-ETag": hashlib.sha256(b"other").hexdigest()}
    with pytest.raises(ModelCorrupt, match="promised sha256:"):
        in_pieces()


def test_a_file_that_changes_between_its_pieces_is_not_mixed(
    in_pieces: Callable[[], Part], store: Store
) -> None:
    store.etags = {3 << 20: '"two"'}
    with pytest.raises(RegistryUnreachable, match="changed in the store"):
        in_pieces()
