"""The bytes of a model's files through bare sockets, dropped as they come: the bound of a server."""

import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

BUFFER_BYTES = 1 << 20


def read_all(uri: str, connections: int) -> int:
    """Read every safetensors file at `uri`, at most `connections` at a time; their bytes."""
    with ThreadPoolExecutor(connections) as pool:
        return sum(pool.map(lambda address: _read(*address), list(_addresses(uri))))


def _addresses(uri: str) -> list[tuple[str, dict[str, str]]]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(uri)
    repository = getattr(repository, "repo", repository)
    names = [entry.path for entry in repository.list_artifacts() if entry.path.endswith(".safetensors")]
    if hasattr(repository, "get_download_presigned_url"):
        found = [repository.get_download_presigned_url(name) for name in names]
    elif repository._is_multipart_download_enabled():
        found = [repository._get_presigned_download_url(name) for name in names]
    else:
        return [(f"{repository.artifact_uri}/{name}", {}) for name in names]
    return [(signed.url, dict(signed.headers or {})) for signed in found]


def _read(url: str, headers: dict[str, str]) -> int:
    place = urlsplit(url)
    lines = {"Host": place.netloc, "Connection": "close", **headers}
    target = f"{place.path}?{place.query}" if place.query else place.path
    request = f"GET {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    count, buffer = 0, bytearray(BUFFER_BYTES)
    with socket.create_connection((str(place.hostname), place.port or 80)) as connection:
        connection.sendall(request.encode())
        while received := connection.recv_into(buffer):
            if not count and not buffer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{url}: {bytes(buffer[:100])!r}")
            count += received
    return count
