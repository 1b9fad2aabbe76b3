"""A little API server on loopback for the operator's real clients:
leases, lists, watches that stay open until a test ends them."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llm_operator.ports.cluster import KINDS

Json = dict[str, Any]
VERBS = ["list", "watch", "patch"]
# Beside our own kinds those that kopf looks for before it begins.
SERVED = {
    **KINDS,
    "Namespace": ("v1", "namespaces"),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions"),
}


class ApiServer:
    """What it was asked, and what tests make of it."""

    def __init__(self) -> None:
        self.url = ""
        self.lease: Json | None = None
        self.tokens: list[str] = []
        """What each request was authorized with."""
        self.paths: list[str] = []
        self.identities: set[str] = set()
        self.refuses: set[str] = set()
        """Plurals that are answered with 403."""
        self.watched: set[str] = set()
        """Plurals whose watch is open now."""
        self.selected: dict[str, set[str]] = {}
        """By plural: the label selectors that lists and watches came with."""
        self.items: dict[str, list[Json]] = {}
        """By plural: what lists answer."""
        self.expired: dict[str, asyncio.Event] = {}
        """By plural: set by a test, its watch ends because its past is forgotten."""
        self.accepted = ""
        """The one token that is taken; empty: any, or none."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization", ""))
        self.paths.append(request.path)
        if (
            self.accepted
            and request.headers.get("Authorization", "").split(" ")[-1] != self.accepted
        ):
            return web.json_response({"message": "Unauthorized"}, status=401)
        plural = request.path.rstrip("/").rpartition("/")[2]
        if "/leases" in request.path:
            return await self._lease(request)
        if (known := _discovery(request.path)) is not None:
            return web.json_response(known)
        if plural in self.refuses:
            return web.json_response({"message": f"{plural} is forbidden"}, status=403)
        selector = request.query.get("labelSelector", "")
        self.selected.setdefault(plural, set()).add(selector)
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        return web.json_response(
            {
                "kind": "List",
                "items": self.items.get(plural, []),
                "metadata": {"resourceVersion": "1"},
            }
        )

    async def _lease(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            if self.lease is None:
                return web.json_response({"message": "no such lease"}, status=404)
            return web.json_response(self.lease)
        change = json.loads(await request.text())
        self.lease = {**(self.lease or {}), **change}
        self.lease["metadata"] = {**self.lease["metadata"], "resourceVersion": str(len(self.paths))}
        self.identities.add(change["spec"].get("holderIdentity", ""))
        return web.json_response(self.lease)

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self.watched.add(plural)
        expired = self.expired[plural] = asyncio.Event()
        try:
            await expired.wait()
        finally:
            self.watched.discard(plural)
        gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
        await response.write(json.dumps(gone).encode() + b"\n")
        return response

    def held_by(self, other: str) -> None:
        """The lease is another's."""
        self.lease = {
            "metadata": {"name": "llm-operator", "resourceVersion": "1"},
            "spec": {"holderIdentity": other, "leaseDurationSeconds": 3600},
        }


@asynccontextmanager
async def serving(
    tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[ApiServer]:
    """An API server while the block runs."""
    server = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0, ssl_context=tls)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    server.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def _discovery(path: str) -> Json | None:
    """What there is: as much of it as kopf looks at. None: not a question of discovery."""
    versions = {version for version, _ in SERVED.values()}
    groups = sorted({version.partition("/")[0] for version in versions if "/" in version})
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        return {"groups": [_group(group, versions) for group in groups]}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in versions:
        return None
    return {
        "resources": [
            {
                "name": plural,
                "kind": kind,
                "singularName": kind.lower(),
                "namespaced": True,
                "verbs": VERBS,
            }
            for kind, (of, plural) in SERVED.items()
            if of == version
        ]
    }


def _group(group: str, versions: set[str]) -> Json:
    found = [
        {"version": each.partition("/")[2]} for each in versions if each.startswith(f"{group}/")
    ]
    return {"name": group, "preferredVersion": found[0], "versions": found}


class Proxy:
    """An HTTP proxy that counts what it is asked for, and passes on nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode()
        self.asked.append(line.split(" ")[1])
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def proxying() -> AsyncIterator[Proxy]:
    """A proxy while the block runs."""
    proxy = Proxy()
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()


def service_account(folder: Path, names: tuple[str, ...] = ("127.0.0.1", "::1")) -> ssl.SSLContext:
    """What the kubelet mounts (`token`, `ca.crt`),
    and a server's TLS for those addresses or names."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [_alternative(name) for name in names]
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "token").write_text("first")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "tls.key")
    return context


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
