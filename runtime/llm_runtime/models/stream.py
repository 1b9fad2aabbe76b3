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
from llm_runtime.models.part import PIECE_BYTES, READ_BYTES, Part

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


def download(source: Source, part: Part) -> None:
    """Fill `part` from `source`. Raises what the connection, the server or the disk has against it."""
    in_pieces = source.in_pieces and part.is_worth_pieces
    end = min(part.safe_bytes + PIECE_BYTES, part.size or 0) if in_pieces else None
    response = source.get(_headers(part, end))
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.safe_bytes:
        response.close()
        part.discard()
        response = source.get(_headers(part, end := None))
    try:
        response.raise_for_status()
        start, etag = _start(response, part.safe_bytes), response.headers.get("ETag", "")
        if end is None or response.status_code != HTTPStatus.PARTIAL_CONTENT:
            part.take(_chunks(response), start, etag)
        else:
            part.take_pieces(_chunks(response), lambda first, past: _piece(source, etag, first, past), etag)
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


def _piece(source: Source, etag: str, begin: int, end: int) -> Iterator[bytes]:
    response = source.get({"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"})
    try:
        response.raise_for_status()
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or response.headers.get("ETag", "") != etag:
            raise RegistryUnreachable("the file has changed in the store while it was downloaded")
        _start(response, begin)
        yield from _chunks(response)
    finally:
        response.close()


def _headers(part: Part, end: int | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # Bytes of a compressed answer could not be counted.
    if part.safe_bytes or end:
        headers["Range"] = f"bytes={part.safe_bytes}-{end - 1 if end else ''}"
        if part.etag and not part.etag.startswith("W/"):
            headers["If-Range"] = part.etag
    return headers


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
