"""What the API server tells to whoever watches: every state of a kind, not only those that a test happens to see."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from control_plane.operator_fixtures import Api, Json
from llm_operator.cluster import path_of


@contextmanager
def recorded(api: Api, kind: str, namespace: str) -> Iterator[list[Json]]:
    """Every state of the namespace's objects of one kind, from now on, in order."""
    found: list[Json] = []
    stop = threading.Event()

    def follow() -> None:
        query, patience = {"watch": "1"}, httpx.Timeout(20, read=300)
        try:
            with api.client.stream("GET", path_of(kind, namespace), params=query, timeout=patience) as answer:
                for line in answer.iter_lines():
                    if stop.is_set():
                        return
                    found.append(json.loads(line)["object"])
        except httpx.HTTPError:
            return

    threading.Thread(target=follow, daemon=True).start()
    yield found
    stop.set()
