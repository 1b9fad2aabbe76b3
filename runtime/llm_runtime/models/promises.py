"""What a registry or a store says of a file's bytes before they have come: `sha256:…`, as text that a mark can hold."""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol


class Hash(Protocol):
    """Of hashlib, or `_Crc32`."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def promise_of(response: Any) -> str:
    """The strongest promise of the whole file in requests' `response`, or in one that redirected to it; else ""."""
    answers: list[Mapping[str, str]] = [answer.headers for answer in (*response.history, response)]
    return next(_promises(answers, whole=response.status_code == HTTPStatus.OK), "")


def promise_of_object(headers: Mapping[str, str]) -> str:
    """The same in what an S3 store answers to HEAD with checksums."""
    return next(_promises([headers], whole=True), "")


def hash_of(promise: str) -> Hash:
    """What computes the other side of `promise`."""
    name = promise.partition(":")[0]
    return _Crc32() if name == "crc32" else hashlib.new(name, usedforsecurity=False)


def is_kept(promise: str, computed: Hash) -> bool:
    """Whether the bytes that `computed` has seen are those of `promise`."""
    return promise.partition(":")[2] == computed.hexdigest()


def _promises(answers: list[Mapping[str, str]], *, whole: bool) -> Iterator[str]:
    spelled = [{name.lower(): value for name, value in headers.items()} for headers in answers]
    for headers in spelled:  # The Hub says it, then redirects to a store that does not.
        if re.fullmatch('"?[0-9a-f]{64}"?', linked := headers.get("x-linked-etag", "")):
            yield "sha256:" + linked.strip('"')
    headers = spelled[-1]
    etag = headers.get("etag", "").strip('"')
    # An answer to a range may have the checksum of the range; that of parts is one of their checksums, not of the file.
    said = whole and (headers.get("x-amz-checksum-type") == "FULL_OBJECT" or "-" not in etag)
    for name in ("sha256", "sha1") if said else ():
        yield from _decoded(name, headers.get(f"x-amz-checksum-{name}", ""))
    if whole:
        yield from _decoded("md5", headers.get("content-md5", ""))
    if re.fullmatch("[0-9a-f]{32}", etag) and _has_digests_as_etags(headers):
        yield f"md5:{etag}"
    if said:
        yield from _decoded("crc32", headers.get("x-amz-checksum-crc32", ""))


def _decoded(name: str, value: str) -> Iterator[str]:
    try:
        digest = base64.b64decode(value, validate=True).hex()
    except (binascii.Error, ValueError):  # With "-3" at its end: of three parts.
        return
    if len(digest) == len(hash_of(name).hexdigest()):
        yield f"{name}:{digest}"


def _has_digests_as_etags(headers: Mapping[str, str]) -> bool:
    """Whether this is S3 where the ETag of an object that came in one part is its MD5."""
    is_s3 = any(name.startswith("x-amz") for name in headers)
    key = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    own_key = "x-amz-server-side-encryption-customer-algorithm" in headers
    return is_s3 and not key and not own_key and headers.get("x-amz-storage-class") != "EXPRESS_ONEZONE"
