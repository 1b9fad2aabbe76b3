"""Downloads a model's files through bare sockets:
the bound for a server, and for a client that hashes and writes."""

import hashlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

BUFFER_BYTES = 1 << 20


def read_all(uri: str, connections: int, folder: Path | None = None) -> int:
    """Read every safetensors file at `uri`, at most `connections` at a time; their bytes.

    They are dropped, or, given a `folder`, hashed and written to files in it.
    """
    jobs = [
        (url, headers, folder / str(number) if folder else None)
        for number, (url, headers) in enumerate(_addresses(uri))
    ]
    with ThreadPoolExecutor(connections) as pool:
        return sum(pool.map(lambda job: _read(*job), jobs))


def _addresses(uri: str) -> list[tuple[str, dict[str, str]]]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(uri)
    repository = getattr(repository, "repo", repository)
    names = [
        entry.path for entry in repository.list_artifacts() if entry.path.endswith(".safetensors")
    ]
    if hasattr(repository, "get_download_presigned_url"):
        found = [repository.get_download_presigned_url(name) for name in names]
    elif repository._is_multipart_download_enabled():
        found = [repository._get_presigned_download_url(name) for name in names]
    else:
        return [(f"{repository.artifact_uri}/{name}", {}) for name in names]
    return [(signed.url, dict(signed.headers or {})) for signed in found]


def _read(url: str, headers: dict[str, str], file: Path | None) -> int:
    place = urlsplit(url)
    lines = {"Host": place.netloc, "Connection": "close", **headers}
    target = f"{place.path}?{place.query}" if place.query else place.path
    request = (
        f"GET {target} HTTP/1.1\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        + "\r\n"
    )
    count = 0
    buffer = bytearray(BUFFER_BYTES)
    with ExitStack() as stack:
        takers = _takers(stack, file)
        connection = stack.enter_context(
            socket.create_connection((str(place.hostname), place.port or 80))
        )
        connection.sendall(request.encode())
        while received := connection.recv_into(buffer):
            if not count and not buffer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{url}: {bytes(buffer[:100])!r}")
            for take in takers:
                take(memoryview(buffer)[:received])
            count += received
    return count


def _takers(stack: ExitStack, file: Path | None) -> list[Callable[[memoryview], object]]:
    if file is None:
        return []
    # The response's head is hashed and written, too: for a bound, the file need not be loadable.
    return [hashlib.sha256().update, stack.enter_context(file.open("wb", buffering=0)).write]
