"""How to get an artifact's bytes over HTTP: through MLflow's proxy, or from a presigned URL."""

import posixpath
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from llm_runtime.fetching.part import PIECE_BYTES
from llm_runtime.fetching.promises import promise_of_object
from llm_runtime.fetching.stream import TIMEOUT_SECONDS, FileRequest

FRESH_SECONDS = 60.0
"""Age at which a presigned URL is renewed. MLflow's expire after 300 seconds by default."""

Sign = Callable[[], Any]
"""Returns a presigned URL with headers (MLflow's `PresignedDownloadUrlResponse`),
None if the store signs none."""


def of_mlflow(repository: Any, path: str, size: int | None) -> FileRequest:
    """An artifact of MLflow's HTTP repository:
    by presigned URL if the server offers one, else through the proxy."""
    from mlflow.utils.rest_utils import http_request

    # For a small file, asking for a presigned URL would take longer than the download.
    if (size is None or size >= PIECE_BYTES) and (signed := _offered(repository, path)):
        return signed

    def get(headers: Mapping[str, str]) -> Any:
        more = {
            "extra_headers": dict(headers),
            "timeout": TIMEOUT_SECONDS,
            "raise_on_status": False,
        }
        return http_request(repository._host_creds, f"/{path}", "GET", stream=True, **more)

    return FileRequest(get)


def of_store(repository: Any, path: str) -> FileRequest:
    """An artifact of an object store, by URLs that the store's own client presigns in this
    process."""

    def sign() -> Any:
        return repository.get_download_presigned_url(path)

    return replace(_signed(sign, sign()), promise=_promise(repository, path))


def _promise(repository: Any, path: str) -> str:
    """The checksum that was stored with the upload, "" without one.

    S3 returns it only to requests with ChecksumMode,
    which a presigned URL does not carry, so a HEAD asks for it.
    """
    bucket, folder = repository.parse_s3_compliant_uri(repository.artifact_uri)
    asked = {"Bucket": bucket, "Key": posixpath.join(folder, path), "ChecksumMode": "ENABLED"}
    answer = repository._get_s3_client().head_object(**asked, **repository._bucket_owner_params)
    return promise_of_object(answer["ResponseMetadata"]["HTTPHeaders"])


def _offered(repository: Any, path: str) -> FileRequest | None:
    from requests import HTTPError

    offered = getattr(repository, "_is_multipart_download_enabled", None)
    if offered is None or not offered():
        return None

    def sign() -> Any:
        return repository._get_presigned_download_url(path)

    try:
        return _signed(sign, sign())
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.NOT_FOUND):
            raise
        return None


def _signed(sign: Sign, first: Any) -> FileRequest:
    from mlflow.environment_variables import MLFLOW_S3_IGNORE_TLS
    from requests import Session

    # One session for all pieces of the file, so that they share connections.
    session = Session()
    lock = threading.Lock()
    session.verify = not MLFLOW_S3_IGNORE_TLS.get()
    signed = first
    since = time.monotonic()

    def fresh() -> Any:
        nonlocal signed, since
        with lock:
            if time.monotonic() - since > FRESH_SECONDS:
                signed = sign()
                since = time.monotonic()
            return signed

    def get(headers: Mapping[str, str]) -> Any:
        address = fresh()
        together = {**dict(address.headers or {}), **headers}
        return session.get(address.url, headers=together, stream=True, timeout=TIMEOUT_SECONDS)

    return FileRequest(get, in_pieces=True)
