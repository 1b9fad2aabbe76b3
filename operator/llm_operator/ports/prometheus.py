"""All I/O to Prometheus: one number for one query,
of servers that the platform team has named and of no others."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import httpx

from llm_operator.ports.proxies import bounded, proxy_for
from llm_operator.state import Measured

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 64 << 10
"""Largest size of an answer, which is one number."""
AT_ONCE = 8
"""Queries at the same time, over all deployments."""


class Prometheus(Protocol):
    """The question of gates. A test's stand-in has this method too."""

    async def query(self, server: str, query: str, namespace: str = "") -> Measured:
        """The query's number now; `server` may be empty for the configured one.
        `namespace`: of who asks."""
        ...


class HttpPrometheus:
    """The real one, by its HTTP API."""

    def __init__(
        self,
        url: str = "",
        allowed: Iterable[str] = (),
        transport: httpx.AsyncBaseTransport | None = None,
        bound: bool = False,
    ) -> None:
        """`bound`: the servers bind each query to the namespace of its parameter `namespace`."""
        self._bound = bound
        self._places = asyncio.Semaphore(AT_ONCE)
        self._url = url
        self._allowed = {each.rstrip("/") for each in (url, *allowed) if each}
        self._transport = transport
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def query(self, server: str, query: str, namespace: str = "") -> Measured:
        server = server or self._url
        if not server:
            return Measured(
                waiting=(
                    "no server: write prometheus.url in the operator's configuration (its chart's"
                    " prometheusUrl)"
                )
            )
        # Whoever may write a gate must not choose where the operator,
        # with its place in the network, sends requests.
        if server.rstrip("/") not in self._allowed:
            return Measured(
                waiting=(
                    f"the operator may not ask {server}: add it to prometheus.allowed in the"
                    " operator's configuration (its chart's prometheusAllowed), or remove the"
                    " gate's server"
                )
            )
        try:
            client = self._client(server)
        except (ValueError, ImportError) as error:
            return Measured(
                waiting=(
                    f"the proxy for {server} can't be used ({error}): check HTTPS_PROXY and"
                    " ALL_PROXY"
                )
            )
        try:
            asked = {
                "query": query,
                "namespace": namespace,
                "timeout": f"{TIMEOUT_SECONDS:.0f}s",
                "limit": "2",
            }
            async with self._places, asyncio.timeout(TIMEOUT_SECONDS):
                url = f"{server.rstrip('/')}/api/v1/query"
                plain = {"Accept-Encoding": "identity"}
                async with client.stream("GET", url, params=asked, headers=plain) as answer:
                    status = answer.status_code
                    text = await bounded(answer, MAX_BYTES)
            if status >= 500:
                return Measured(waiting=f"{server} answers {status}")
            return replace(_read(json.loads(text), server, self._bound), told=self._bound)
        except TimeoutError:
            return Measured(waiting=f"{server} does not answer within {TIMEOUT_SECONDS:.0f} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Measured(waiting=f"{server} does not answer ({type(error).__name__})")
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return Measured(waiting=f"what answers at {server} is not Prometheus")

    def _client(self, server: str) -> httpx.AsyncClient:
        """One for each server, as each may have its own way.

        Raises ValueError or ImportError for a proxy that can't be used.
        """
        if server not in self._clients:
            self._clients[server] = httpx.AsyncClient(
                transport=self._transport,
                timeout=TIMEOUT_SECONDS,
                proxy=None if self._transport else proxy_for(server),
                trust_env=False,
                follow_redirects=False,
            )
        return self._clients[server]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()


def _read(answer: dict[str, object], server: str, bound: bool) -> Measured:
    """A scalar, or a vector of one element.
    Raises ValueError, KeyError or TypeError for what is not Prometheus."""
    if answer["status"] != "success":
        kind = str(answer.get("errorType"))[:40]
        # Of a query that runs, the words of the error have labels of the series that it found, and
        # a query can turn any figure into a label. bad_data: it can't be read, and so found none.
        whose = bound or kind == "bad_data"
        said = str(answer.get("error"))[:300] if whose else f"{kind}: ask it by hand for its words"
        return Measured(waiting=f"{server} refuses the query: {said}")
    data = answer["data"]
    if not isinstance(data, dict):
        raise TypeError("data is no object")
    kind = data["resultType"]
    result = data["result"]
    if kind == "scalar":
        return Measured(float(result[1]))
    if kind != "vector":
        return Measured(waiting=f"the query answers a {kind}: write one that answers one number")
    if len(result) > 1:
        return Measured(
            waiting="the query answers 2 series or more: aggregate them to one, as with sum()"
        )
    return Measured(float(result[0]["value"][1]) if result else None)
