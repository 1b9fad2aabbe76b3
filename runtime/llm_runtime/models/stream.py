"""One artifact over HTTP into its part, from where the last attempt ended when the server answers ranges.

Everything that MLflow serves by itself comes this way: through its proxy, or, where it gives out presigned addresses,
from the store behind it. A megabyte is in memory at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from llm_runtime.errors import RegistryUnreachable
from llm_runtime.models.part import READ_BYTES, Part

TIMEOUT_SECONDS = (30, 600)
"""To connect, and between two bytes: a proxy reads the whole object from its store before it sends the first one."""

Get = Callable[[Mapping[str, str]], Any]
"""Sends a GET with these headers and returns requests' response, not yet read."""


def download(get: Get, part: Part) -> None:
    """Fill `part` from `get`. Raises what the connection, the server or the disk has against it."""
    response = get(_headers(part))
    if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.safe_bytes:
        response.close()
        part.discard()
        response = get(_headers(part))
    try:
        response.raise_for_status()
        start = _start(response, part.safe_bytes)
        part.take(_chunks(response), start, response.headers.get("ETag", ""))
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


def of_mlflow(repository: Any, path: str) -> Get:
    """How to get an artifact of MLflow's HTTP repository: presigned where its server offers that, else by the proxy."""
    from mlflow.environment_variables import MLFLOW_S3_IGNORE_TLS
    from mlflow.utils.rest_utils import http_request
    from requests import get as http_get

    def get(headers: Mapping[str, str]) -> Any:
        if signed := _presigned(repository, path):
            together = {**dict(signed.headers or {}), **headers}
            verify = not MLFLOW_S3_IGNORE_TLS.get()
            return http_get(signed.url, headers=together, stream=True, timeout=TIMEOUT_SECONDS, verify=verify)
        credentials = repository._host_creds
        more = {"extra_headers": dict(headers), "timeout": TIMEOUT_SECONDS, "raise_on_status": False}
        return http_request(credentials, f"/{path}", "GET", stream=True, **more)

    return get


def _presigned(repository: Any, path: str) -> Any:
    from requests import HTTPError

    offered = getattr(repository, "_is_multipart_download_enabled", None)
    if offered is None or not offered():
        return None
    try:
        return repository._get_presigned_download_url(path)
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.NOT_FOUND):
            raise
        return None


def _headers(part: Part) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # Bytes of a compressed answer could not be counted.
    if part.safe_bytes:
        headers["Range"] = f"bytes={part.safe_bytes}-"
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
