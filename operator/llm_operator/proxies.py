"""Which requests go through a proxy: one rule for everything that the operator asks (docs/operations.md)."""

from urllib.parse import urlsplit, urlunsplit

from requests.utils import get_environ_proxies, select_proxy


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for `url`; None: ask it directly.

    By HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY (or in small letters) as `requests` reads them, with networks
    like 10.0.0.0/8 in NO_PROXY. So do the pods, whose downloads are made with `requests`. httpx and aiohttp, left to
    themselves, know no networks in NO_PROXY and send everything to the proxy.
    """
    found = select_proxy(url, get_environ_proxies(url))
    if found and "://" not in found:
        return f"http://{found}"
    return found or None


def without_password(url: str) -> str:
    """`url` as it may be logged."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
