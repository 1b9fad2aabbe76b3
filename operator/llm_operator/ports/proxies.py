"""Rules for every request of the operator: through which proxy it goes (docs/operations.md), and
how much of an answer is read."""

from urllib.parse import urlsplit, urlunsplit

import httpx
from requests.utils import get_environ_proxies, select_proxy


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for `url`; None: ask it directly.

    By HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (or in small letters) as `requests` reads
    them, with networks like 10.0.0.0/8 in NO_PROXY. The pods do the same, because they download
    with `requests`. By themselves, httpx and aiohttp know no networks in NO_PROXY and send
    everything to the proxy.
    """
    found = select_proxy(url, get_environ_proxies(url))
    if found and "://" not in found:
        return f"http://{found}"
    return found or None


def without_password(url: str) -> str:
    """`url` as it may be logged."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


async def bounded(answer: httpx.Response, most: int) -> bytes:
    """The body. Raises ValueError for a longer one,
    and for a compressed one: a little may unfold to any size."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError(f"{answer.url} sent a compressed answer, which was not asked for")
    found = bytearray()
    async for chunk in answer.aiter_bytes():
        found += chunk
        if len(found) > most:
            raise ValueError(f"{answer.url} sent more than {most} bytes")
    return bytes(found)
