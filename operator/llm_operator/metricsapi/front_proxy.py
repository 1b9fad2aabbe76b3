"""Who asks: the API server says so in headers, and proves by its client certificate that it is the
API server.

What to believe stands in the ConfigMap kube-system/extension-apiserver-authentication, as for every
extension API server (Kubernetes documentation, "Configure the Aggregation Layer").
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

CONFIG_MAP = ("kube-system", "extension-apiserver-authentication")

ANONYMOUS = "system:anonymous"
UNAUTHENTICATED = "system:unauthenticated"
AUTHENTICATED = "system:authenticated"
"""Every server adds this group to who is known: the API server's own requests for discovery come
without any."""


class Headers(Protocol):
    """The headers of a request; names match in whatever case."""

    def getall(self, key: str, default: list[str]) -> list[str]: ...
    def __iter__(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class User:
    """Who asked the API server."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class FrontProxy:
    """Whom to believe, and in which headers."""

    authority: str = field(repr=False)
    """The certificate authority of the API server's client certificate, PEM."""
    names: frozenset[str]
    """Common names that the certificate may have; empty: any."""
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]
    uid_headers: tuple[str, ...]

    @classmethod
    def read(cls, data: Mapping[str, str]) -> "FrontProxy":
        """From the ConfigMap's data. Raises ValueError where the cluster has no front proxy."""
        authority = data.get("requestheader-client-ca-file", "")
        users = _listed(data, "requestheader-username-headers")
        if not authority or not users:
            raise ValueError(
                "ConfigMap kube-system/extension-apiserver-authentication names no front proxy:"
                " start the API server with --requestheader-client-ca-file,"
                " --requestheader-username-headers, --proxy-client-cert-file and"
                " --proxy-client-key-file"
            )
        return cls(
            authority,
            frozenset(_listed(data, "requestheader-allowed-names")),
            users,
            _listed(data, "requestheader-group-headers"),
            _listed(data, "requestheader-extra-headers-prefix"),
            _listed(data, "requestheader-uid-headers"),
        )

    def user(self, certificate: Mapping[str, Any] | None, headers: Headers) -> User | None:
        """Who asks; None for a request that did not come through the front proxy.

        `certificate`: the client's, as ssl tells of one that the authority has signed.
        """
        if not certificate or not (not self.names or _common_names(certificate) & self.names):
            return None
        name = _first(headers, self.user_headers)
        if not name:
            return None
        groups = tuple(g for header in self.group_headers for g in headers.getall(header, []))
        if name != ANONYMOUS and not {AUTHENTICATED, UNAUTHENTICATED} & set(groups):
            groups += (AUTHENTICATED,)
        return User(name, groups, _first(headers, self.uid_headers), self._extra(headers))

    def _extra(self, headers: Headers) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found = dict[str, tuple[str, ...]]()
        for header in headers:
            for prefix in self.extra_prefixes:
                if header.lower().startswith(prefix.lower()):
                    key = unquote(header[len(prefix) :].lower())
                    found[key] = tuple(headers.getall(header, []))
        return tuple(sorted(found.items()))


def _listed(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    """A list, which the ConfigMap has as JSON text. Raises ValueError."""
    found = json.loads(data.get(key) or "[]")
    if not isinstance(found, list):
        raise ValueError(f"{key} of ConfigMap {'/'.join(CONFIG_MAP)} is not a list")
    return tuple(map(str, found))


def _first(headers: Headers, names: tuple[str, ...]) -> str:
    return next((v for name in names for v in headers.getall(name, []) if v), "")


def _common_names(certificate: Mapping[str, Any]) -> set[str]:
    return {
        value
        for parts in certificate.get("subject", ())
        for key, value in parts
        if key == "commonName"
    }
