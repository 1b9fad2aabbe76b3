"""Downloads one artifact over HTTP into its part,
resuming the last attempt if the server supports ranges.

Files of the Hugging Face Hub come this way, and everything that MLflow serves: through its proxy,
or by presigned URLs from the store behind it. A store sends a large file in pieces over several
connections. Each connection holds one megabyte in memory at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from llm_runtime.errors import RegistryUnreachable
from llm_runtime.fetching.part import PIECE_BYTES, READ_BYTES, BadDownload, Part
from llm_runtime.fetching.promises import promise_of

TIMEOUT_SECONDS = (30, 600)
"""Time to connect, and between two bytes:
a proxy reads the whole object from its store before it sends the first."""

Get = Callable[[Mapping[str, str]], Any]
"""Sends a GET with these headers and returns requests' response, not yet read."""


@dataclass(frozen=True, slots=True)
class FileRequest:
    """How to request a file."""

    get: Get
    in_pieces: bool = False
    """Whether many range requests are cheap.
    They are not at a proxy that reads the whole object for each."""
    promise: str = ""
    """Checksum of the whole file (see `promises`), if known in advance;
    else the response to `get` may have one."""


def download(source: FileRequest, part: Part) -> None:
    """Fill `part` from `source`.
    Raises requests' errors, RegistryUnreachable, BadDownload or OSError."""
    if part.safe_bytes and not part.etag:
        # Without an ETag, nothing tells whether new bytes belong to the same edition as the old.
        part.discard()
    in_pieces = source.in_pieces and part.is_worth_pieces
    response = source.get(_headers(part, in_pieces))
    if part.safe_bytes and _is_of_another_file(response, part):
        response.close()
        part.discard()
        in_pieces = False
        response = source.get(_headers(part, in_pieces))
    if in_pieces and response.status_code == HTTPStatus.PARTIAL_CONTENT and not _edition(response):
        # Without an ETag, pieces of two editions could be mixed.
        response.close()
        in_pieces = False
        response = source.get(_headers(part, in_pieces))
    try:
        response.raise_for_status()
        start = _start(response, part.safe_bytes)
        etag = _edition(response)
        _check_size(response, part)
        promise = source.promise or promise_of(response)
        part.promise = (part.promise or promise) if start else promise
        if in_pieces and response.status_code == HTTPStatus.PARTIAL_CONTENT:
            part.take_pieces(
                _chunks(response), lambda first, past: _piece(source, part, first, past), etag
            )
        else:
            part.take(_chunks(response), start, etag)
    finally:
        response.close()


@contextmanager
def beginning(get: Get, most_bytes: int) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that reads the next bytes of a file's beginning;
    close the connection after the block.

    Closing early also limits the transfer from a server without ranges.
    Raises requests' errors or RegistryUnreachable.
    """
    response = get({"Accept-Encoding": "identity", "Range": f"bytes=0-{most_bytes - 1}"})
    try:
        response.raise_for_status()
        _start(response, 0)
        yield response.raw.read
    finally:
        response.close()


def _piece(source: FileRequest, part: Part, begin: int, end: int) -> Iterator[bytes]:
    response = source.get({"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"})
    try:
        response.raise_for_status()
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or _is_of_another_file(
            response, part
        ):
            raise RegistryUnreachable("the file changed in the store while it was downloaded")
        _start(response, begin)
        yield from _chunks(response)
    finally:
        response.close()


def _headers(part: Part, in_pieces: bool) -> dict[str, str]:
    headers = {
        "Accept-Encoding": "identity"
    }  # A compressed body has other byte positions than the file.
    if part.safe_bytes or in_pieces:
        end = min(part.safe_bytes + PIECE_BYTES, part.size or 0) - 1 if in_pieces else ""
        headers["Range"] = f"bytes={part.safe_bytes}-{end}"
        if part.etag:
            headers["If-Range"] = part.etag
    return headers


def _edition(response: Any) -> str:
    """Identifies this edition of the file, in a form for If-Range:
    its ETag, else Last-Modified, else "".

    A weak ETag does not count: editions with different bytes may share it.
    """
    etag = str(response.headers.get("ETag", ""))
    return "" if etag.startswith("W/") else etag or str(response.headers.get("Last-Modified", ""))


def _is_of_another_file(response: Any, part: Part) -> bool:
    """Whether a response to a range belongs to another edition than `part`.
    Not every store honours If-Range."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return bool(response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    total = _total(response)
    return _edition(response) != part.etag or (
        None not in (total, part.size) and total != part.size
    )


def _total(response: Any) -> int | None:
    """Bytes of the whole file, if the response says."""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = response.headers.get("Content-Length", "")
    return (
        int(length) if length.isdecimal() and not response.headers.get("Content-Encoding") else None
    )


def _check_size(response: Any, part: Part) -> None:
    total = _total(response)
    if part.size is None:
        part.size = total
    elif total not in (None, part.size):
        raise BadDownload(
            f"{part.name} has {total} bytes, its listing says {part.size}; upload it to the"
            " registry again"
        )


def _start(response: Any, asked: int) -> int:
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != asked:
        raise RegistryUnreachable(
            f"the server sent another range than the requested one, from byte {asked} on"
        )
    return asked


def _chunks(response: Any) -> Iterator[bytes]:
    while chunk := response.raw.read(READ_BYTES, decode_content=True):
        yield chunk
