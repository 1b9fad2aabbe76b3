"""A client of the Kubernetes API: requests, and mirrors that list and watch."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Json = dict[str, Any]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
log = logging.getLogger("node.api")


class ApiError(RuntimeError):
    """The API server refused; `status` is its HTTP status, 0 when it could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """A client for the server and user of a kubeconfig's current context."""

    def __init__(self, kubeconfig: Path) -> None:
        self.server, self.context, self.headers = read_kubeconfig(kubeconfig)
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        # Created at first use, because a session belongs to the running loop.
        # No proxy, because this is loopback.
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self.context, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, headers=self.headers, trust_env=False
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **params: str) -> Json:
        return await self._send("GET", path, None, "", params)

    async def post(self, path: str, body: Json) -> Json:
        return await self._send("POST", path, body, "application/json", {})

    async def patch(self, path: str, body: Json, content_type: str = MERGE) -> Json:
        return await self._send("PATCH", path, body, content_type, {})

    async def delete(self, path: str, body: Json | None = None) -> Json:
        return await self._send("DELETE", path, body or {}, "application/json", {})

    async def _send(
        self, method: str, path: str, body: Json | None, content_type: str, params: dict[str, str]
    ) -> Json:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} if content_type else {}
        limit = aiohttp.ClientTimeout(total=30)
        url = self.server + path
        try:
            async with self.session.request(
                method, url, data=data, headers=headers, params=params, timeout=limit
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 400:
            raise ApiError(answer.status, message_of(text))
        result: Json = json.loads(text)
        return result

    async def watch(
        self, path: str, version: str, params: dict[str, str], each: Callable[[Json], None]
    ) -> None:
        """Call `each` with every watch event until the server ends the watch. Raises ApiError."""
        query = {**params, "watch": "1", "resourceVersion": version, "timeoutSeconds": "300"}
        limit = aiohttp.ClientTimeout(total=None, sock_read=330)
        try:
            async with self.session.get(self.server + path, params=query, timeout=limit) as answer:
                if answer.status >= 400:
                    raise ApiError(answer.status, message_of(await answer.text()))
                await events(answer.content, each)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"watch {path}: {error or type(error).__name__}") from error


async def events(stream: aiohttp.StreamReader, each: Callable[[Json], None]) -> None:
    # Split by hand, because readline() refuses lines above 64 KiB,
    # and a Secret may have a megabyte.
    rest = b""
    async for piece in stream.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in filter(None, lines):
            each(json.loads(line))


class Mirror:
    """A local copy of a list of objects.
    Calls `changed` for each object that is added, changed or deleted (None)."""

    def __init__(
        self, api: Api, path: str, changed: Callable[[str, Json | None], None], **params: str
    ) -> None:
        self.api = api
        self.path = path
        self.changed = changed
        self.params = params
        self.objects: dict[str, Json] = {}

    async def run(self) -> None:
        """Follow for ever. After a failure it lists again,
        which closes any gap, and goes on watching."""
        while True:
            try:
                await self.once()
            except ApiError as error:
                log.warning("%s: %s; trying again", self.path, error)
                await asyncio.sleep(1)

    async def once(self) -> None:
        listed = await self.api.get(self.path, **self.params)
        current = {key_of(item): item for item in listed.get("items") or []}
        for key in [key for key in self.objects if key not in current]:
            self.put(key, None)
        for key, item in current.items():
            self.put(key, item)
        await self.api.watch(
            self.path, listed["metadata"]["resourceVersion"], self.params, self.event
        )

    def event(self, event: Json) -> None:
        if event["type"] == "ERROR":
            raise ApiError(int(event["object"].get("code", 0)), str(event["object"].get("message")))
        key = key_of(event["object"])
        self.put(key, None if event["type"] == "DELETED" else event["object"])

    def put(self, key: str, item: Json | None) -> None:
        if item is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = item
        self.changed(key, item)


def key_of(item: Json) -> str:
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"


def message_of(text: str) -> str:
    try:
        return str(json.loads(text).get("message") or text)
    except ValueError:
        return text


async def insist(
    action: Callable[[], Awaitable[Json]], *, ignore: tuple[int, ...] = ()
) -> Json | None:
    """Retry `action` after transient errors.
    Returns None if the API server answers with a status in `ignore`."""
    while True:
        try:
            return await action()
        except ApiError as error:
            if error.status in ignore:
                return None
            if 400 <= error.status < 500 and error.status != 429:
                raise
            log.warning("%s; trying again", error)
            await asyncio.sleep(1)


def read_kubeconfig(path: Path) -> tuple[str, ssl.SSLContext, dict[str, str]]:
    """Server, TLS context and headers of the current context:
    tokens and client certificates, no exec plugins."""
    content = yaml.safe_load(path.read_text())
    context = named(content["contexts"], content["current-context"])["context"]
    cluster = named(content["clusters"], context["cluster"])["cluster"]
    user = named(content["users"], context["user"])["user"]
    trust = ssl.create_default_context(
        cadata=decoded(cluster, "certificate-authority", path) or None
    )
    headers = {"User-Agent": "process-node"}
    if "token" in user or "tokenFile" in user:
        headers["Authorization"] = (
            "Bearer " + (user.get("token") or Path(user["tokenFile"]).read_text()).strip()
        )
    elif certificate := decoded(user, "client-certificate", path):
        load_pair(trust, certificate, decoded(user, "client-key", path))
    else:
        raise SystemExit(
            f"{path}: the user has neither token nor client certificate; the process node knows no"
            " other"
        )
    return cluster["server"].rstrip("/"), trust, headers


def named(items: list[Json], name: str) -> Json:
    return next(item for item in items if item["name"] == name)


def decoded(entry: Json, field: str, kubeconfig: Path) -> str:
    if data := entry.get(f"{field}-data"):
        return base64.b64decode(data).decode()
    return (kubeconfig.parent / entry[field]).read_text() if field in entry else ""


def load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(certificate + "\n" + key)
        file.flush()
        context.load_cert_chain(file.name)
