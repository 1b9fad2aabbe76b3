"""Service account tokens of a pod, bound to it and renewed before they expire."""

from __future__ import annotations

import time

from node.api import Api, ApiError, Json
from node.resolve import ConfigError

RENEW_AT = 0.8


class Tokens:
    """Gets tokens from the TokenRequest API, and renews each after 80 % of its lifetime."""

    def __init__(self, api: Api, pod: Json) -> None:
        self.api = api
        self.pod = pod
        self._cached: dict[str, tuple[float, str]] = {}

    async def get(self, source: Json) -> str:
        """The token for one projected source. Raises ConfigError."""
        audience = source.get("audience", "")
        seconds = int(source.get("expirationSeconds", 3600))
        renew_at, token = self._cached.get(audience, (0.0, ""))
        if time.monotonic() >= renew_at:
            token = await self._request(audience, seconds)
            self._cached[audience] = (time.monotonic() + RENEW_AT * seconds, token)
        return token

    async def _request(self, audience: str, seconds: int) -> str:
        metadata = self.pod["metadata"]
        account = self.pod["spec"].get("serviceAccountName", "default")
        bound = {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        spec: Json = {
            "expirationSeconds": seconds,
            "boundObjectRef": bound,
            "audiences": [audience] if audience else [],
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = await self.api.post(
                f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token", body
            )
        except ApiError as error:
            raise ConfigError(f"failed to fetch token for {account!r}: {error}") from error
        return str(answer["status"]["token"])
