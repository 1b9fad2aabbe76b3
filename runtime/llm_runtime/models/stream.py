"""One artifact over HTTP into its part, from where the last attempt ended when the server answers ranges.

Everything that MLflow serves by itself comes this way: through its proxy, or from the store behind it where the server
or the store's client signs addresses of it. From a store a large file comes in pieces over several connections. A
megabyte for each connection is in memory at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from llm_runtime.errors import RegistryUnreachable
from llm_runtime.models.part import PIECE_BYTES, READ_BYTES, BadDownload, Part
from llm_runtime.models.promises import promise_of

TIMEOUT_SECONDS = (30, 600)
"""To connect, and between two bytes: a proxy reads the whole object from its store before it sends the first one."""

Get = Callable[[Mapping[str, str]], Any]
"""Sends a GET with these headers and returns requests' response, not yet read."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file comes from."""

    get: Get
    in_pieces: bool = False
    """Whether asking for many ranges is cheap: not at a proxy that reads the whole object from its store for each."""
    promise: str = ""
    """Of the whole file (`promises`), where somebody said it before; else what the answer to `get` says counts."""


def download(source: Source, part: Part) -> None:
    """Fill `part` from `source`. Raises what the connection, the server or the disk has against it."""
    if part.safe_bytes and not part.etag:
        part.discard()  # Nothing would tell whether what comes belongs to what is there.
    in_pieces = source.in_pieces and part.is_worth_pieces
    response = source.get(_headers(part, in_pieces))
    if part.safe_bytes and _is_of_another_file(response, part):
        response.close()
        part.discard()
        response = source.get(_headers(part, in_pieces := False))
    if in_pieces and response.status_code == HTTPStatus.PARTIAL_CONTENT and not _edition(response):
        response.close()
        response = source.get(_headers(part, in_pieces := False))
    try:
        response.raise_for_status()
        start = _start(response, part.safe_bytes)
        etag = _edition(response)
        _check_size(response, part)
        promise = source.promise or promise_of(response)
        part.promise = (part.promise or promise) if start else promise
        if in_pieces and response.status_code == HTTPStatus.PARTIAL_CONTENT:
            part.take_pieces(_chunks(response), lambda first, past: _piece(source, part, first, past), etag)
        else:
            part.take(_chunks(response), start, etag)
    finally:
        response.close()


@contextmanager
def beginning(get: Get, most_bytes: int) -> Iterator[Callable[[int], bytes]]:
    """Read a file's first bytes, so many at a time, and hang up; where the server knows no ranges it sends no more.

    Raises what the connection or the server has against it.
    """
    response = get({"Accept-Encoding": "identity", "Range": f"bytes=0-{most_bytes - 1}"})
    try:
        response.raise_for_status()
        _start(response, 0)
        yield response.raw.read
    finally:
        response.close()


def _piece(source: Source, part: Part, begin: int, end: int) -> Iterator[bytes]:
    response = source.get({"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"})
    try:
        response.raise_for_status()
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or _is_of_another_file(response, part):
            raise RegistryUnreachable("the file has changed in the store while it was downloaded")
        _start(response, begin)
        yield from _chunks(response)
    finally:
        response.close()


def _headers(part: Part, in_pieces: bool) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # Bytes of a compressed answer could not be counted.
    if part.safe_bytes or in_pieces:
        end = min(part.safe_bytes + PIECE_BYTES, part.size or 0) - 1 if in_pieces else ""
        headers["Range"] = f"bytes={part.safe_bytes}-{end}"
        if part.etag:
            headers["If-Range"] = part.etag
    return headers


def _edition(response: Any) -> str:
    """What tells this edition of the file from others, as If-Range takes it: its ETag, or else when it changed.

    "" without either. A weak ETag may be that of other bytes, too.
    """
    etag = str(response.headers.get("ETag", ""))
    return "" if etag.startswith("W/") else etag or str(response.headers.get("Last-Modified", ""))


def _is_of_another_file(response: Any, part: Part) -> bool:
    """Whether an answer to a range is no part of the file that `part` has: not every store knows If-Range."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return bool(response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    total = _total(response)
    return _edition(response) != part.etag or (None not in (total, part.size) and total != part.size)


def _total(response: Any) -> int | None:
    """Bytes of the whole file, where the answer says."""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and not response.headers.get("Content-Encoding") else None


def _check_size(response: Any, part: Part) -> None:
    total = _total(response)
    if part.size is None:
        part.size = total
    elif total not in (None, part.size):
        raise BadDownload(
            f"{part.name} has {total} bytes, its listing says {part.size}; upload it to the registry again"
        )


def _start(response: Any, asked: int) -> int:
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != asked:
        raise RegistryUnreachable(f"the server answered another range than the one asked for, from byte {asked} on")
    return asked


def _chunks(response: Any) -> Iterator[bytes]:
    while chunk := response.raw.read(READ_BYTES, decode_content=True):
        yield chunk
