"""Services without kube-proxy: listens on a Service's address and forwards connections to ready
pods.

EndpointSlices refuse loopback addresses, so the node matches selectors itself. An open connection
stays with its pod whatever happens to the Service; only new connections follow readiness and the
selector.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field

from node.api import Api, ApiError, Json, Mirror
from node.node import Node
from node.pod import Pod

ADDRESS = "process-node.llm-operator.dev/address"
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
CHUNK = 1 << 16
log = logging.getLogger("node.services")


@dataclass
class Listener:
    """One port of one Service."""

    server: asyncio.Server | None = None
    turn: itertools.count[int] = field(default_factory=itertools.count)


class Services:
    """All Services with a selector, each on its ClusterIP."""

    def __init__(self, api: Api, node: Node) -> None:
        self.api = api
        self.node = node
        self.mirror = Mirror(api, "/api/v1/services", self.changed)
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.own: dict[str, str] = {}
        self.lock = asyncio.Lock()

    def changed(self, key: str, service: Json | None) -> None:
        self.node.spawn(self.serve(key))

    async def serve(self, key: str) -> None:
        """Update the listeners of one Service to its newest object."""
        async with self.lock:
            service = self.mirror.objects.get(key)
            wanted = {int(port["port"]) for port in tcp_ports(service)} if service else set()
            for name, port in [
                entry for entry in self.listeners if entry[0] == key and entry[1] not in wanted
            ]:
                self.close(self.listeners.pop((name, port)))
            if service is not None:
                for port in sorted(wanted - {port for name, port in self.listeners if name == key}):
                    await self.listen(key, service, port)

    def close(self, listener: Listener) -> None:
        if listener.server is not None:
            listener.server.close()

    async def listen(self, key: str, service: Json, port: int) -> None:
        listener = Listener()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.forward(key, port, listener, reader, writer)

        address = self.address(key, service)
        try:
            listener.server = await self.bind(accept, address, port, service)
        except OSError as error:
            text = (
                f"cannot listen on {address}:{port}: {error}; is another process node of this"
                " machine on this cluster?"
            )
            log.error("%s: %s", key, text)
            self.node.event({"kind": "Service", **service}, "Warning", "ProcessNodeListen", text)
            return
        self.listeners[key, port] = listener

    async def bind(self, accept: object, address: str, port: int, service: Json) -> asyncio.Server:
        chosen = port
        try:
            server = await asyncio.start_server(accept, address, port)  # type: ignore[arg-type]
        except PermissionError:
            server = await asyncio.start_server(accept, address, 0)  # type: ignore[arg-type]
            chosen = int(server.sockets[0].getsockname()[1])
            text = (
                f"ports below 1024 need rights that this user lacks: port {port} is served on"
                f" {address}:{chosen}"
            )
            log.warning("%s: %s", service["metadata"]["name"], text)
            self.node.event({"kind": "Service", **service}, "Warning", "ProcessNodePort", text)
        if chosen != port or address != service["spec"]["clusterIP"]:
            await self.annotate(service, f"{address}:{chosen}")
        return server

    def address(self, key: str, service: Json) -> str:
        """ClusterIP of the Service if that is a loopback address, else a random loopback address
        that stays the same."""
        if ipaddress.ip_address(service["spec"]["clusterIP"]) in LOOPBACK:
            return str(service["spec"]["clusterIP"])
        chance = f"127.{random.randint(64, 95)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        return self.own.setdefault(key, chance)

    async def annotate(self, service: Json, text: str) -> None:
        path = "/api/v1/namespaces/{namespace}/services/{name}".format(**service["metadata"])
        try:
            await self.api.patch(path, {"metadata": {"annotations": {ADDRESS: text}}})
        except ApiError as error:
            log.warning("%s: cannot annotate: %s", path, error)

    async def forward(
        self,
        key: str,
        port: int,
        listener: Listener,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        upstream = await self.connect(key, port, next(listener.turn))
        if upstream is None:
            # A reset, the nearest thing to "connection refused" after accepting
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))

    async def connect(
        self, key: str, port: int, turn: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the pod whose turn it is, or to the next one that accepts."""
        service = self.mirror.objects.get(key)
        pods = self.ready_pods(service) if service else []
        for position in range(len(pods)):
            pod = pods[(turn + position) % len(pods)]
            target = target_port(service or {}, port, pod)
            if target is not None:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(5):
                        return await asyncio.open_connection(pod.pod_ip, target)
        return None

    def ready_pods(self, service: Json) -> list[Pod]:
        everyone = bool(service["spec"].get("publishNotReadyAddresses"))
        return [
            pod
            for _, pod in sorted(self.node.pods.items())
            if matches(service, pod.manifest) and (pod.ready or (everyone and not pod.stopping))
        ]

    def run(self) -> Coroutine[object, object, object]:
        return self.mirror.run()


def tcp_ports(service: Json) -> list[Json]:
    """The ports that can be served: TCP ports of a Service that has a selector and an address."""
    spec = service["spec"]
    if (
        spec.get("clusterIP") in (None, "", "None")
        or not spec.get("selector")
        or spec.get("type") == "ExternalName"
    ):
        return []
    return [port for port in spec.get("ports") or [] if port.get("protocol", "TCP") == "TCP"]


def matches(service: Json, pod: Json) -> bool:
    labels = pod["metadata"].get("labels") or {}
    wanted = service["spec"]["selector"]
    same_namespace = service["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return same_namespace and all(labels.get(key) == value for key, value in wanted.items())


def target_port(service: Json, port: int, pod: Pod) -> int | None:
    """The pod's port for a Service's port: by number,
    or by the name that the pod's containers give it."""
    entry = next((each for each in tcp_ports(service) if int(each["port"]) == port), None)
    if entry is None:
        return None
    target = entry.get("targetPort", port)
    if isinstance(target, int):
        return target
    named = (
        each for spec in pod.manifest["spec"]["containers"] for each in spec.get("ports") or []
    )
    return next((int(each["containerPort"]) for each in named if each.get("name") == target), None)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end, then close that direction (a half-closed connection stays half
    open)."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
