"""One address, one identity and one rule about proxies for everything that the operator asks."""

from __future__ import annotations

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml
from kubernetes.aio.config import incluster_config, kube_config

from llm_operator import watch
from llm_operator.hearing import Hearing
from llm_operator.mirror import Mirror
from llm_operator.plans.names import MANAGED_SELECTOR
from llm_operator.ports import cluster
from llm_operator.ports.cluster import KubernetesCluster, NoCluster, Unavailable
from llm_operator.ports.pods import HttpPods
from llm_operator.ports.prometheus import HttpPrometheus
from llm_operator.ports.proxies import proxy_for
from llm_operator.ports.registry import MlflowRegistry, Reference, RegistryUnreachable
from llm_operator.state import Connection
from unit.operator.api_server import ApiServer, Proxy, proxying, service_account, serving
from waiting import until

Environment = pytest.MonkeyPatch
PLURALS = {"llmdeployments", "apikeys", "deployments", "configmaps", "services", "serviceaccounts",
           "horizontalpodautoscalers", "poddisruptionbudgets", "pods"}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: Environment) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture(name="account")
def _account(tmp_path: Path, monkeypatch: Environment) -> Path:
    """Where a pod's ServiceAccount is mounted."""
    folder = tmp_path / "serviceaccount"
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(folder / "ca.crt"))
    monkeypatch.setattr(cluster, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    return folder


@asynccontextmanager
async def in_pod(
    account: Path, monkeypatch: Environment, host: str = "127.0.0.1"
) -> AsyncIterator[ApiServer]:
    """An API server, and the environment of a pod in its cluster."""
    async with serving(service_account(account), host) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(urlsplit(server.url).port))
        yield server


@asynccontextmanager
async def by_kubeconfig(
    tmp_path: Path, monkeypatch: Environment, **more: Any
) -> AsyncIterator[ApiServer]:
    """An API server, and a kubeconfig that names it."""
    async with serving() as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url, monkeypatch, **more)
        yield server


def write_kubeconfig(path: Path, server: str, monkeypatch: Environment, **more: Any) -> None:
    content = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": server, **more}}],
        "users": [{"name": "a", "user": {"token": "secret"}}],
    }
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))


@asynccontextmanager
async def watching() -> AsyncIterator[Hearing]:
    """The real watches while the block runs."""
    hearing = Hearing(watch.WATCHED)
    mirror = Mirror(hearing.open)
    task = asyncio.ensure_future(watch.watch(lambda key: None, (), "candidate", hearing, mirror))
    try:
        yield hearing
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask() -> None:
    """One request of the other client."""
    api = await KubernetesCluster.connect()
    try:
        await api.get("Lease", "here", "llm-operator")
    finally:
        await api.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_in_a_pod_both_clients_ask_the_address_of_the_environment(
    host: str, account: Path, monkeypatch: Environment
) -> None:
    async with in_pod(account, monkeypatch, host) as server, watching() as hearing:
        await ask()
        await until(lambda: not hearing.missing())
        assert server.watched == PLURALS
        # Of a large cluster the operator hears of its own objects alone.
        children = [cluster.path_of(kind, "").rpartition("/")[2] for kind in watch.CHILDREN]
        assert [server.selected[each] for each in children] == [{MANAGED_SELECTOR}] * len(children)


async def test_dns_that_is_down_keeps_nobody_from_hearing(
    account: Path, monkeypatch: Environment
) -> None:
    real = socket.getaddrinfo

    def down(host: Any, *more: Any, **named: Any) -> Any:
        if host not in ("127.0.0.1", None):
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", down)
    async with in_pod(account, monkeypatch), watching() as hearing:
        await ask()
        await until(lambda: not hearing.missing())


@pytest.mark.parametrize(
    "left_out", ["127.0.0.0/8", ""], ids=["a network in NO_PROXY", "nothing in NO_PROXY"]
)
async def test_in_a_pod_no_proxy_is_asked_for_the_api_server(
    left_out: str, account: Path, monkeypatch: Environment
) -> None:
    async with proxying() as proxy, in_pod(account, monkeypatch), watching() as hearing:
        set_proxy(monkeypatch, proxy, left_out)
        await ask()
        await until(lambda: not hearing.missing())
        assert proxy.asked == []


def set_proxy(monkeypatch: Environment, proxy: Proxy, left_out: str = "") -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", left_out)


async def test_outside_of_pods_both_clients_obey_a_network_in_no_proxy(
    tmp_path: Path, monkeypatch: Environment
) -> None:
    async with proxying() as proxy, by_kubeconfig(tmp_path, monkeypatch) as server:
        set_proxy(monkeypatch, proxy, "10.0.0.0/8,127.0.0.0/8")
        async with watching() as hearing:
            await ask()
            await until(lambda: not hearing.missing())
        assert proxy.asked == []
        assert set(server.tokens) == {"Bearer secret"}


@pytest.mark.parametrize("named", ["by the environment", "by the kubeconfig"])
async def test_outside_of_pods_both_clients_ask_the_proxy_that_is_named(
    named: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    async with proxying() as proxy:
        more = {"proxy-url": proxy.url} if named == "by the kubeconfig" else {}
        async with by_kubeconfig(tmp_path, monkeypatch, **more) as server:
            set_proxy(monkeypatch, proxy, "127.0.0.0/8" if more else "")
            with pytest.raises(Unavailable, match="502"):
                await ask()
            assert len(proxy.asked) == 1
            async with watching():
                await until(lambda: len(proxy.asked) > len(PLURALS))
            assert server.paths == []


async def test_a_replaced_token_is_used_by_both_clients(
    account: Path, monkeypatch: Environment
) -> None:
    late = Ahead()
    monkeypatch.setattr(incluster_config, "datetime", late)
    async with in_pod(account, monkeypatch) as server:
        api = await KubernetesCluster.connect()
        address, session = await cluster.open_session(passed_on)
        for token in ("first", "second"):
            (account / "token").write_text(token)
            late.now_is += datetime.timedelta(minutes=2)
            server.tokens.clear()
            await api.get("Lease", "here", "llm-operator")
            await (await session.get(f"{address}/api/v1/pods")).read()
            assert [each.split(" ")[-1] for each in server.tokens] == [token, token]
        await session.close()
        await api.close()


async def passed_on(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    return await handler(request)


class Ahead(SimpleNamespace):
    """The module `datetime`, whose time passes when a test says so."""

    def __init__(self) -> None:
        super().__init__(timedelta=datetime.timedelta, datetime=self)
        self.now_is = datetime.datetime(2026, 1, 1)

    def now(self) -> datetime.datetime:
        return self.now_is


async def test_watches_that_were_refused_go_on_with_a_new_token(
    account: Path, monkeypatch: Environment
) -> None:
    monkeypatch.setattr(watch, "LOGIN_PAUSE_SECONDS", 0.05)
    async with in_pod(account, monkeypatch) as server:
        server.accepted = "second"
        async with watching() as hearing:
            await until(lambda: any("401: Unauthorized" in each for each in hearing.missing()))
            (account / "token").write_text("second")
            await until(lambda: not hearing.missing())


async def test_a_tls_name_of_the_kubeconfig_holds_for_both_clients(
    tmp_path: Path, monkeypatch: Environment
) -> None:
    tls = service_account(tmp_path, ("api.example.com",))
    async with serving(tls) as server:
        named = {
            "certificate-authority": str(tmp_path / "ca.crt"),
            "tls-server-name": "api.example.com",
        }
        write_kubeconfig(tmp_path / "kubeconfig", server.url, monkeypatch, **named)
        await ask()
        async with watching() as hearing:
            await until(lambda: not hearing.missing())


async def test_who_does_not_answer_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: Environment
) -> None:
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, "http://127.0.0.1:9", monkeypatch)
    with pytest.raises(
        Unavailable, match=r"at http://127.0.0.1:9, without a proxy .*; check that it runs"
    ):
        await ask()
    write_kubeconfig(path, "http://nowhere.invalid", monkeypatch)
    with pytest.raises(
        Unavailable, match=r"http://nowhere.invalid, .*can't be resolved: check DNS"
    ):
        await ask()
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    with pytest.raises(
        Unavailable, match=r"through the proxy http://127.0.0.1:9 .*NO_PROXY"
    ) as told:
        await ask()
    assert "secret" not in str(told.value)


async def test_a_pod_without_a_token_says_what_is_missing(
    account: Path, tmp_path: Path, monkeypatch: Environment
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(NoCluster, match="automountServiceAccountToken"):
        await KubernetesCluster.connect()


@pytest.fixture(name="closed_port")
def _closed_port() -> Iterator[int]:
    """A port of loopback that nobody listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.mark.parametrize(("left_out", "asked"), [("127.0.0.0/8", 0), ("10.0.0.0/8", 1)])
async def test_mlflow_is_asked_through_a_proxy_unless_its_network_is_left_out(
    left_out: str, asked: int, closed_port: int, monkeypatch: Environment
) -> None:
    async with proxying() as proxy:
        set_proxy(monkeypatch, proxy, left_out)
        with pytest.raises(RegistryUnreachable):
            await MlflowRegistry().resolve(
                Connection("default", f"http://127.0.0.1:{closed_port}"),
                Reference("bot", version="1"),
            )
        assert len(proxy.asked) == asked


@pytest.mark.parametrize(("left_out", "asked"), [("127.0.0.0/8", 0), ("10.0.0.0/8", 1)])
async def test_prometheus_is_asked_through_a_proxy_unless_its_network_is_left_out(
    left_out: str, asked: int, closed_port: int, monkeypatch: Environment
) -> None:
    async with proxying() as proxy:
        set_proxy(monkeypatch, proxy, left_out)
        prometheus = HttpPrometheus(f"http://127.0.0.1:{closed_port}")
        assert (await prometheus.query("", "up")).waiting
        await prometheus.close()
        assert len(proxy.asked) == asked


async def test_a_proxy_of_an_unknown_kind_is_told_by_the_gate_and_ends_nothing(
    monkeypatch: Environment,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "carrier-pigeon://127.0.0.1:9")
    prometheus = HttpPrometheus("http://prometheus.example")
    assert (
        "the proxy for http://prometheus.example can't be used"
        in (await prometheus.query("", "up")).waiting
    )
    await prometheus.close()


async def test_pods_are_never_asked_through_a_proxy(monkeypatch: Environment) -> None:
    async with proxying() as proxy:
        set_proxy(monkeypatch, proxy)
        pods = HttpPods()
        pod = {"status": {"podIP": "127.0.0.1"}}
        assert await pods.figures(pod) is None
        assert (await pods.ask(pod, "", {"prompt": "Hi"})).status == 0
        await pods.close()
        assert proxy.asked == []


async def test_a_proxy_that_can_not_be_one_is_told_as_a_silent_registry(
    monkeypatch: Environment,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy:70")
    with pytest.raises(RegistryUnreachable, match="gopher"):
        await MlflowRegistry().resolve(
            Connection("default", "http://mlflow"), Reference("bot", version="1")
        )


@pytest.mark.parametrize(
    ("url", "left_out", "proxied"),
    [
        ("http://mlflow.team.svc:5000", ".svc,.cluster.local", False),
        ("http://mlflow.example.com", ".svc", True),
        ("http://10.1.2.3:5000", "10.0.0.0/8", False),
        ("http://192.168.1.1", "10.0.0.0/8", True),
        ("http://10.1.2.3", "10.1.2.3", False),
        ("http://anything", "*", False),
    ],
)
def test_no_proxy_is_read_by_names_and_networks(
    url: str, left_out: str, proxied: bool, monkeypatch: Environment
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", left_out)
    assert proxy_for(url) == ("http://proxy:3128" if proxied else None)
