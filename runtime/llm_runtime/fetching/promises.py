"""Checksums that a registry or store announces for a file before its bytes arrive,
as text: `sha256:…`.

The text is kept in a part's mark, so that a resumed download is checked, too.
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Protocol


class Hash(Protocol):
    """A running hash: one of hashlib, or `_Crc32`."""

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
    """The strongest checksum of the whole file in requests' `response` or in a redirect before it;
    "" without one."""
    answers: list[Mapping[str, str]] = [answer.headers for answer in (*response.history, response)]
    return next(_promises(answers, whole=response.status_code == HTTPStatus.OK), "")


def promise_of_object(headers: Mapping[str, str]) -> str:
    """The strongest checksum in an S3 store's response to a HEAD request with ChecksumMode."""
    return next(_promises([headers], whole=True), "")


def hash_of(promise: str) -> Hash:
    """An empty hash of the same kind as `promise`."""
    name = promise.partition(":")[0]
    return _Crc32() if name == "crc32" else hashlib.new(name, usedforsecurity=False)


def is_kept(promise: str, computed: Hash) -> bool:
    """Whether the hashed bytes match `promise`."""
    return promise.partition(":")[2] == computed.hexdigest()


def _promises(answers: list[Mapping[str, str]], *, whole: bool) -> Iterator[str]:
    spelled = [{name.lower(): value for name, value in headers.items()} for headers in answers]
    for headers in spelled:  # The Hub states it, then redirects to a store that does not.
        linked = headers.get("x-linked-etag", "")
        if re.fullmatch('"?[0-9a-f]{64}"?', linked):
            yield "sha256:" + linked.strip('"')
    headers = spelled[-1]
    etag = headers.get("etag", "").strip('"')
    # A response to a range may carry the checksum of that range. After a multipart upload (ETag
    # with "-"), the checksum is one of the parts' checksums, not of the file, unless its type is
    # FULL_OBJECT.
    of_file = whole and (headers.get("x-amz-checksum-type") == "FULL_OBJECT" or "-" not in etag)
    for name in ("sha256", "sha1") if of_file else ():
        yield from _decoded(name, headers.get(f"x-amz-checksum-{name}", ""))
    if whole:
        yield from _decoded("md5", headers.get("content-md5", ""))
    if re.fullmatch("[0-9a-f]{32}", etag) and _has_digests_as_etags(headers):
        yield f"md5:{etag}"
    if of_file:
        yield from _decoded("crc32", headers.get("x-amz-checksum-crc32", ""))


def _decoded(name: str, value: str) -> Iterator[str]:
    try:
        digest = base64.b64decode(value, validate=True).hex()
    except (
        binascii.Error,
        ValueError,
    ):  # A suffix like "-3" means: computed over the checksums of three parts.
        return
    if len(digest) == len(hash_of(name).hexdigest()):
        yield f"{name}:{digest}"


def _has_digests_as_etags(headers: Mapping[str, str]) -> bool:
    """Whether the ETag is the object's MD5:
    so on S3 for single-part uploads, except with KMS or customer keys."""
    is_s3 = any(name.startswith("x-amz") for name in headers)
    key = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    own_key = "x-amz-server-side-encryption-customer-algorithm" in headers
    return (
        is_s3
        and not key
        and not own_key
        and headers.get("x-amz-storage-class") != "EXPRESS_ONEZONE"
    )
