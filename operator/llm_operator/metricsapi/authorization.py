"""Whether somebody may ask: the API server decides, by SubjectAccessReviews."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from llm_operator.metricsapi.front_proxy import User
from llm_operator.state import Manifest

KEPT_SECONDS = 10.0
"""How long a decision is used again, as by Kubernetes' own extension API servers."""
KEPT = 2048


class Authorization:
    """`review(spec)` asks for one SubjectAccessReview and returns its status."""

    def __init__(
        self,
        review: Callable[[Manifest], Awaitable[Manifest]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._review = review
        self._clock = clock
        self._known: dict[tuple[User, str, str], tuple[float, str | None]] = {}

    async def refusal(self, user: User, method: str, path: str) -> str | None:
        """Why the user may not; None where they may. Raises ApiError."""
        key = user, method, path
        until, why = self._known.get(key, (0.0, None))
        if self._clock() < until:
            return why
        status = await self._review(
            {
                "user": user.name,
                "groups": list(user.groups),
                "uid": user.uid,
                "extra": {name: list(values) for name, values in user.extra},
                **attributes(method, path),
            }
        )
        why = None if status.get("allowed") else (status.get("reason") or "no rule permits it")
        self._known.pop(key, None)
        self._known[key] = self._clock() + KEPT_SECONDS, why
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        return why


def attributes(method: str, path: str) -> dict[str, Any]:
    """What a path asks for, in the words of RBAC, as the API server's RequestInfo reads it."""
    parts = [part for part in path.split("/") if part]
    verb = method.lower()
    if len(parts) < 4 or parts[0] != "apis":
        return {"nonResourceAttributes": {"path": path, "verb": verb}}
    _, group, version, *rest = parts
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace = rest[1]
        rest = rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    return {
        "resourceAttributes": {
            "group": group,
            "version": version,
            "namespace": namespace,
            "resource": resource,
            "name": name,
            "subresource": subresource,
            "verb": verb if name or verb != "get" else "list",
        }
    }
