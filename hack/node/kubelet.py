"""The part of the kubelet's API that `kubectl logs` needs:
HTTPS on loopback, open to everyone on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from node.container import Container
from node.node import Node

POLL_SECONDS = 0.1


async def serve(node: Node, folder: Path) -> tuple[web.AppRunner, int]:
    """Start it on a free port of 127.0.0.1."""
    app = web.Application()
    app["node"] = node
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    app.router.add_get("/healthz", healthy)
    app.router.add_route("*", "/{rest:.*}", unsupported)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate(folder))
    await site.start()
    return runner, int(runner.addresses[0][1])


def certificate(folder: Path) -> ssl.SSLContext:
    """A self-signed certificate, made by hack/kube's binary (on the PATH of a local cluster)
    or by openssl."""
    name = folder / "kubelet"
    if kube := shutil.which("kube"):
        command = [kube, "selfsigned", str(name)]
    elif openssl := shutil.which("openssl"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        command = [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=node",
            *files,
        ]
    else:
        raise SystemExit(
            "a certificate for kubectl logs needs openssl, or hack/kube's programs on PATH: install"
            " openssl"
        )
    environment = {**os.environ, "KUBE_LIFELINE": ""}
    subprocess.run(
        command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{name}.crt", f"{name}.key")
    return context


async def healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def unsupported(request: web.Request) -> web.Response:
    what = request.path.strip("/").partition("/")[0]
    text = (
        f"the process node does not support {what}: its pods are processes of this machine, reach"
        " them directly\n"
    )
    return web.Response(status=501, text=text)


def find(request: web.Request) -> Container:
    node: Node = request.app["node"]
    pod = node.pods.get(f"{request.match_info['namespace']}/{request.match_info['pod']}")
    name = request.match_info["container"]
    for container in [*pod.inits, *pod.mains] if pod else []:
        if container.spec["name"] == name:
            return container
    raise web.HTTPNotFound(text=f"container {name!r} is not on this node\n")


async def logs(request: web.Request) -> web.StreamResponse:
    query = request.query
    if unknown := {"sinceSeconds", "sinceTime", "timestamps"} & {
        key for key in query if query[key] != "false"
    }:
        raise web.HTTPBadRequest(
            text=f"the process node keeps no times of log lines, leave out {', '.join(unknown)}\n"
        )
    container = find(request)
    previous = query.get("previous") == "true"
    file = container.log(previous)
    if not file.exists():
        raise web.HTTPBadRequest(
            text=f"{'previous ' * previous}container {container.spec['name']!r} has no log yet\n"
        )
    answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await answer.prepare(request)
    follow = query.get("follow") == "true" and not previous
    async for piece in pieces(file, int(query.get("tailLines", -1)), container if follow else None):
        await answer.write(piece)
    return answer


async def pieces(file: Path, lines: int, container: Container | None) -> AsyncIterator[bytes]:
    """The last `lines` lines of the log (-1: all).
    With `container`, follow it while the attempt that writes runs."""
    with file.open("rb") as stream:
        content = stream.read()
        yield (
            content
            if lines < 0
            else b"".join(content.splitlines(keepends=True)[-lines:] if lines else [])
        )
        while container is not None:
            over = container.log() != file or not container.record.is_running
            if piece := stream.read():
                yield piece
            elif over:
                return
            await asyncio.sleep(POLL_SECONDS)
