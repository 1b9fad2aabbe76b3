"""The metrics API: who is answered and what, over TLS as the API server asks it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from devstack.control_plane import FRONT_PROXY, write_front_proxy
from devstack.ports import free_port
from llm_operator.metricsapi import certificates, registration
from llm_operator.metricsapi.answers import quantity
from llm_operator.metricsapi.authorization import Authorization, attributes
from llm_operator.metricsapi.certificates import Signed
from llm_operator.metricsapi.front_proxy import FrontProxy, User
from llm_operator.metricsapi.part import MetricsApi
from llm_operator.metricsapi.samples import FRESH_SECONDS, Samples
from llm_operator.ports.cluster import Refused, Unavailable
from llm_operator.settings import MetricsApiSettings
from llm_operator.state import Figures, Load, Manifest
from unit.operator.fakes import NAMESPACE, FakeCluster, FakePods
from waiting import until

CUSTOM = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{NAMESPACE}"
EXTERNAL = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}"
OWN = "operators"
SERVICE = "llm-operator-metrics-api"
WAITING = "llm_requests_waiting"
AUTOSCALER = {"X-Remote-User": "hpa"}


@dataclass
class Site:
    """A cluster with a front proxy, pods with figures, and the metrics API of one replica."""

    folder: Path
    cluster: FakeCluster = field(default_factory=FakeCluster)
    pods: FakePods = field(default_factory=FakePods)
    port: int = field(default_factory=free_port)
    allowed: set[str] = field(default_factory=lambda: {"hpa"})
    reviews: list[Manifest] = field(default_factory=list)

    def __post_init__(self) -> None:
        write_front_proxy(self.folder)
        self.trust(self.folder)
        meta = {"name": SERVICE, "uid": "role"}
        self.cluster.objects["ClusterRole", "", SERVICE] = {"kind": "ClusterRole", "metadata": meta}

    def trust(self, folder: Path) -> None:
        """Have the cluster name the front proxy of this folder."""
        data = {
            "requestheader-client-ca-file": (folder / "front-proxy-ca.crt").read_text(),
            "requestheader-allowed-names": f'["{FRONT_PROXY}"]',
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        }
        place = ("ConfigMap", "kube-system", "extension-apiserver-authentication")
        self.cluster.objects[place] = {"kind": "ConfigMap", "metadata": {}, "data": data}

    def pod(self, name: str, load: Load | None, *, of: str = "bot", ready: bool = True) -> None:
        labels = {
            "app.kubernetes.io/managed-by": "llm-operator",
            "llm-operator.dev/deployment": of,
            "llm-operator.dev/revision": "abc",
        }
        state = "True" if ready else "False"
        self.cluster.objects["Pod", NAMESPACE, name] = {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": state}]},
        }
        if load is not None:
            self.pods.known[name] = Figures(load=load)

    async def review(self, spec: Manifest) -> Manifest:
        self.reviews.append(spec)
        return {"allowed": spec["user"] in self.allowed, "reason": ""}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[MetricsApi]:
        settings = MetricsApiSettings(port=self.port)
        api = MetricsApi(self.cluster, self.pods, self.review, settings, OWN, host="127.0.0.1")
        api.lead(self.cluster)
        task = asyncio.create_task(api.run())
        try:
            await until(lambda: not api.advice)
            yield api
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()

    async def ask(
        self,
        path: str,
        *,
        by: Path | None = None,
        certificate: bool = True,
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """What the API server is answered, or somebody else."""
        secret = Signed.read(self.cluster.objects["Secret", OWN, SERVICE])
        context = ssl.create_default_context(cadata=secret.certificate)
        if certificate:
            folder = by or self.folder
            context.load_cert_chain(folder / "front-proxy.crt", folder / "front-proxy.key")
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            return await client.request(
                method,
                f"https://127.0.0.1:{self.port}{path}",
                headers=AUTOSCALER if headers is None else headers,
                extensions={"sni_hostname": f"{SERVICE}.{OWN}.svc"},
            )


@pytest.fixture(name="site")
def _site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def load(running: float = 0, waiting: float = 0, speed: float = 0, cache: float = 0) -> Load:
    return Load(running, waiting, speed, cache)


def said(answer: httpx.Response) -> tuple[int, str, str]:
    status = answer.json()
    assert (status["kind"], status["apiVersion"], status["status"]) == ("Status", "v1", "Failure")
    assert status["code"] == answer.status_code
    return status["code"], status["reason"], status["message"]


async def values(site: Site, path: str) -> dict[str, str]:
    """Values by the object's name."""
    answer = await site.ask(path)
    assert answer.status_code == 200, answer.text
    return {each["describedObject"]["name"]: each["value"] for each in answer.json()["items"]}


async def test_each_ready_pod_that_the_selector_chooses_has_its_own_figure(site: Site) -> None:
    site.pod("a", load(waiting=7))
    site.pod("b", load(waiting=2))
    site.pod("starting", load(waiting=3), ready=False)
    site.pod("silent", None)
    site.pod("another", load(waiting=9), of="other")
    before = datetime.now(UTC).replace(microsecond=0)
    selector = "llm-operator.dev/deployment=bot,llm-operator.dev/revision=abc"
    async with site.serving():
        answer = await site.ask(f"{CUSTOM}/pods/*/{WAITING}?labelSelector={selector}")
        body = answer.json()
        assert (body["kind"], body["apiVersion"]) == (
            "MetricValueList", "custom.metrics.k8s.io/v1beta2"
        )  # fmt: skip
        first = body["items"][0]
        assert first["describedObject"] == {
            "kind": "Pod", "namespace": NAMESPACE, "name": "a", "apiVersion": "v1"
        }  # fmt: skip
        assert first["metric"] == {"name": WAITING}
        stamp = datetime.fromisoformat(first["timestamp"])
        assert before <= stamp <= datetime.now(UTC)
        assert {i["describedObject"]["name"]: i["value"] for i in body["items"]} == {
            "a": "7", "b": "2"
        }  # fmt: skip
        assert "windowSeconds" not in first
        rate = (await site.ask(f"{CUSTOM}/pods/*/tokens_per_second")).json()["items"][0]
        assert rate["windowSeconds"] == 10
        assert await values(site, f"{CUSTOM}/pods/b/{WAITING}") == {"b": "2"}
        # Several metrics of one pod are one request to it.
        assert site.pods.looked.count("a") == 1


async def test_no_pods_are_an_empty_list_and_what_is_unknown_is_not_found(site: Site) -> None:
    async with site.serving():
        assert await values(site, f"{CUSTOM}/pods/*/{WAITING}") == {}
        for path, word in (
            (f"{CUSTOM}/pods/*/cpu", "ask for one of llm_requests_waiting"),
            (f"{CUSTOM}/pods/gone/{WAITING}", "pod gone"),
            (f"{CUSTOM}/services/bot/{WAITING}", "ask for pods or llmdeployments"),
            (f"{EXTERNAL}/cpu", "ask for one of"),
            ("/apis/custom.metrics.k8s.io/v1beta1", "nothing is served at"),
            ("/openapi/v2", "nothing is served at"),
        ):
            code, reason, message = said(await site.ask(path))
            assert (code, reason) == (404, "NotFound")
            assert word in message
        refused = await site.ask(f"{CUSTOM}/pods/*/{WAITING}?metricLabelSelector=a%3Db")
        assert said(refused)[:2] == (400, "BadRequest")
        assert said(await site.ask(CUSTOM, method="DELETE"))[:2] == (405, "MethodNotAllowed")


async def test_an_llmdeployment_has_the_figures_of_all_its_pods_together_or_none(
    site: Site,
) -> None:
    meta = {"name": "bot", "namespace": NAMESPACE, "labels": {"team": "a"}}
    site.cluster.objects["LLMDeployment", NAMESPACE, "bot"] = {
        "kind": "LLMDeployment", "metadata": meta
    }  # fmt: skip
    site.pod("a", load(waiting=7, cache=0.5))
    site.pod("b", load(waiting=2, cache=0.25))
    site.pod("c", load(waiting=1), of="other")
    of = f"{CUSTOM}/llmdeployments.llm-operator.dev"
    async with site.serving():
        assert await values(site, f"{of}/bot/{WAITING}") == {"bot": "9"}
        assert await values(site, f"{of}/bot/llm_kv_cache_usage_ratio") == {"bot": "375m"}
        assert await values(site, f"{of}/*/{WAITING}?labelSelector=team%3Da") == {"bot": "9"}
        outside = (await site.ask(f"{EXTERNAL}/{WAITING}")).json()
        assert outside["kind"] == "ExternalMetricValueList"
        label = "llm-operator.dev/deployment"
        assert {i["metricLabels"][label]: i["value"] for i in outside["items"]} == {
            "bot": "9", "other": "1"
        }  # fmt: skip
        site.pod("silent", None)
        assert said(await site.ask(f"{of}/bot/{WAITING}"))[0] == 404
        (left,) = (await site.ask(f"{EXTERNAL}/{WAITING}")).json()["items"]
        assert left["metricLabels"] == {label: "other"}


async def test_discovery_names_every_metric(site: Site) -> None:
    async with site.serving():
        groups = (await site.ask("/apis")).json()["groups"]
        assert [g["preferredVersion"]["groupVersion"] for g in groups] == [
            "custom.metrics.k8s.io/v1beta2", "external.metrics.k8s.io/v1beta1"
        ]  # fmt: skip
        assert (await site.ask("/apis/custom.metrics.k8s.io")).json()["kind"] == "APIGroup"
        found = (await site.ask("/apis/custom.metrics.k8s.io/v1beta2")).json()
        names = {each["name"] for each in found["resources"]}
        assert {f"pods/{WAITING}", f"llmdeployments.llm-operator.dev/{WAITING}"} < names
        assert len(names) == 8
        found = (await site.ask("/apis/external.metrics.k8s.io/v1beta1")).json()
        assert {each["name"] for each in found["resources"]} == {
            WAITING, "llm_requests_running", "tokens_per_second", "llm_kv_cache_usage_ratio"
        }  # fmt: skip


async def test_only_the_front_proxy_is_believed(site: Site, tmp_path: Path) -> None:
    path = f"{CUSTOM}/pods/*/{WAITING}"
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    write_front_proxy(strangers)
    async with site.serving():
        code, reason, message = said(await site.ask(path, certificate=False))
        assert (code, reason) == (401, "Unauthorized")
        assert f"kubectl get --raw '{path}'" in message
        assert said(await site.ask(path, headers={}))[0] == 401
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            await site.ask(path, by=strangers)
        assert not site.reviews


@pytest.mark.parametrize(
    ("names", "believed"),
    [('["front-proxy-client"]', True), ('["aggregator"]', False), ("[]", True)],
)
def test_the_certificate_must_have_an_allowed_name(names: str, *, believed: bool) -> None:
    proxy = FrontProxy.read(
        {
            "requestheader-client-ca-file": "PEM",
            "requestheader-allowed-names": names,
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        }
    )
    headers = httpx.Headers(
        [
            ("x-remote-user", "ann"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("X-Remote-Extra-Scopes%2fof", "read"),
        ]
    )
    certificate = {"subject": ((("commonName", "front-proxy-client"),),)}
    found = proxy.user(certificate, _Headers(headers))
    extra = (("scopes/of", ("read",)),)
    groups = ("a", "b", "system:authenticated")
    assert found == (User("ann", groups, "", extra) if believed else None)
    assert proxy.user(None, _Headers(headers)) is None


class _Headers:
    """As aiohttp's."""

    def __init__(self, headers: httpx.Headers) -> None:
        self._headers = headers

    def getall(self, key: str, default: list[str]) -> list[str]:
        return self._headers.get_list(key) or default

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)


def test_a_cluster_without_a_front_proxy_is_told_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="--requestheader-client-ca-file"):
        FrontProxy.read({})


async def test_who_may_not_is_refused_and_a_decision_is_used_for_a_moment(site: Site) -> None:
    path = f"{CUSTOM}/pods/*/{WAITING}"
    async with site.serving():
        for _ in range(2):
            code, reason, message = said(await site.ask(path, headers={"X-Remote-User": "eve"}))
            assert (code, reason) == (403, "Forbidden")
            assert "eve may not GET" in message
        assert [each["user"] for each in site.reviews] == ["eve"]
        assert (await site.ask(path)).status_code == 200
        assert site.reviews[1]["groups"] == ["system:authenticated"]


async def test_an_operator_that_may_not_ask_for_decisions_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(spec: Manifest) -> Manifest:
        raise Refused("subjectaccessreviews is forbidden (403)")

    monkeypatch.setattr(site, "review", refused)
    async with site.serving():
        code, reason, message = said(await site.ask(f"{CUSTOM}/pods/*/{WAITING}"))
    assert (code, reason) == (500, "InternalError")
    assert "bind ClusterRole system:auth-delegator" in message


async def test_a_decision_is_asked_for_again_after_ten_seconds() -> None:
    asked = list[Manifest]()
    now = [0.0]

    async def review(spec: Manifest) -> Manifest:
        asked.append(spec)
        return {"allowed": len(asked) > 1}

    authorization = Authorization(review, lambda: now[0])
    ann = User("ann")
    assert await authorization.refusal(ann, "GET", "/apis") == "no rule permits it"
    now[0] = 9.9
    assert await authorization.refusal(ann, "GET", "/apis")
    now[0] = 10.0
    assert await authorization.refusal(ann, "GET", "/apis") is None
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/apis", {"path": "/apis", "verb": "get"}),
        (
            f"{CUSTOM}/pods/*/{WAITING}",
            {"group": "custom.metrics.k8s.io", "version": "v1beta2", "namespace": NAMESPACE,
             "resource": "pods", "name": "*", "subresource": WAITING, "verb": "get"},
        ),
        (
            f"{EXTERNAL}/{WAITING}",
            {"group": "external.metrics.k8s.io", "version": "v1beta1", "namespace": NAMESPACE,
             "resource": WAITING, "name": "", "subresource": "", "verb": "list"},
        ),
    ],
)  # fmt: skip
def test_a_path_is_asked_for_in_the_words_of_rbac(path: str, wanted: Manifest) -> None:
    assert list(attributes("GET", path).values()) == [wanted]


async def test_an_api_server_that_is_away_or_refuses_the_selector_is_told_as_such(
    site: Site,
) -> None:
    async with site.serving():
        site.cluster.faults = {("list", "Pod"): Refused("unable to parse requirement (400)")}
        code, reason, message = said(await site.ask(f"{CUSTOM}/pods/*/{WAITING}"))
        assert (code, reason, "unable to parse" in message) == (400, "BadRequest", True)
        site.cluster.faults = {("list", "Pod"): Unavailable("it does not answer")}
        assert said(await site.ask(f"{CUSTOM}/pods/*/{WAITING}"))[0] == 503


async def test_a_sample_is_used_for_five_seconds(site: Site) -> None:
    now = [100.0]
    samples = Samples(site.cluster, site.pods, lambda: now[0])
    site.pod("a", load(waiting=1))
    for passed, asked in ((0.0, 1), (FRESH_SECONDS, 1), (FRESH_SECONDS + 0.1, 2)):
        now[0] = 100.0 + passed
        (sample,) = await samples.of(NAMESPACE, "")
        assert sample.load == load(waiting=1)
        assert len(site.pods.looked) == asked


async def test_a_pod_that_still_owes_an_answer_is_not_asked_again(site: Site) -> None:
    now = [100.0]
    asked: list[str] = []
    answered = asyncio.Event()

    class Slow(FakePods):
        async def figures(self, pod: Manifest) -> Figures | None:
            asked.append(pod["metadata"]["name"])
            if pod["metadata"]["name"] == "slow":
                await answered.wait()
            return Figures(load=load(waiting=1))

    samples = Samples(site.cluster, Slow(), lambda: now[0])
    site.pod("slow", load())
    site.pod("other", load())
    waiting = []
    for _ in range(3):
        waiting.append(asyncio.create_task(samples.of(NAMESPACE, "")))
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        now[0] += FRESH_SECONDS + 1
    assert sorted(asked) == ["other"] * 3 + ["slow"], "the others' figures stay fresh meanwhile"
    answered.set()
    assert all(len(found) == 2 for found in await asyncio.gather(*waiting))
    await samples.of(NAMESPACE, "")
    assert asked.count("slow") == 2


async def test_a_pod_of_an_evaluation_is_not_one_that_serves(site: Site) -> None:
    site.pod("a", load(waiting=2))
    site.pod("judge", None)
    del site.cluster.objects["Pod", NAMESPACE, "judge"]["metadata"]["labels"][
        "llm-operator.dev/deployment"
    ]
    async with site.serving():
        (item,) = (await site.ask(f"{EXTERNAL}/{WAITING}")).json()["items"]
    assert item["value"] == "2"
    assert site.pods.looked == ["a"]


@pytest.mark.parametrize(
    "path",
    [
        f"{CUSTOM}/llmdeployments.llm-operator.dev/%3Flimit=1/{WAITING}",
        f"{CUSTOM}/pods/a%252Fstatus/{WAITING}",
        f"{CUSTOM}%3Fx/pods/*/{WAITING}",
        f"{EXTERNAL}%3Fx/{WAITING}",
        f"{EXTERNAL.removesuffix(NAMESPACE)}*/{WAITING}",
    ],
)
async def test_a_name_that_would_ask_for_something_else_is_refused(site: Site, path: str) -> None:
    async with site.serving():
        code, reason, message = said(await site.ask(path))
    assert (code, reason, "is no name" in message) == (400, "BadRequest", True)


async def test_another_authority_of_the_front_proxy_is_followed(site: Site, tmp_path: Path) -> None:
    path = f"{CUSTOM}/pods/*/{WAITING}"
    renewed = tmp_path / "renewed"
    renewed.mkdir()
    write_front_proxy(renewed)
    async with site.serving() as api:
        assert (await site.ask(path)).status_code == 200
        site.trust(renewed)
        api.lead(site.cluster)  # It looks at once.

        async def follows() -> bool:
            try:
                return (await site.ask(path, by=renewed)).status_code == 200
            except httpx.HTTPError:
                return False

        while not await follows():  # noqa: ASYNC110 - it is asked from outside
            await asyncio.sleep(0.01)
        with pytest.raises(httpx.HTTPError):
            await site.ask(path)


async def test_the_apis_are_registered_once_and_go_with_the_chart(site: Site) -> None:
    async with site.serving() as api:
        made = site.cluster.objects["APIService", "", "v1beta2.custom.metrics.k8s.io"]
        secret = Signed.read(site.cluster.objects["Secret", OWN, SERVICE])
        assert made["spec"]["service"] == {"namespace": OWN, "name": SERVICE, "port": 8443}
        assert made["spec"]["caBundle"] == secret.bundle
        assert [o["uid"] for o in made["metadata"]["ownerReferences"]] == ["role"]
        assert site.cluster.named("APIService") == [
            "v1beta1.external.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"
        ]  # fmt: skip
        before = list(site.cluster.writes)
        await api._look()
        assert site.cluster.writes == before


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
async def test_an_api_of_somebody_else_is_left_alone_until_they_give_it_up(
    site: Site, version: str
) -> None:
    name = f"{version}.custom.metrics.k8s.io"
    theirs = {
        "kind": "APIService",
        "metadata": {"name": name},
        "spec": {"service": {"namespace": "monitoring", "name": "prometheus-adapter"}},
    }
    site.cluster.objects["APIService", "", name] = theirs
    place = registration.Place(OWN, SERVICE, 8443)
    found = await registration.register(site.cluster, place, "CA", [])
    assert "belongs to Service monitoring/prometheus-adapter" in found["custom.metrics.k8s.io"]
    assert f"kubectl delete apiservice {name}" in found["custom.metrics.k8s.io"]
    assert found["external.metrics.k8s.io"] == ""
    assert site.cluster.objects["APIService", "", name] == theirs
    del site.cluster.objects["APIService", "", name]
    assert set((await registration.register(site.cluster, place, "CA", [])).values()) == {""}


async def test_a_secret_that_holds_something_else_is_told_and_not_overwritten(site: Site) -> None:
    key = ("Secret", OWN, SERVICE)
    made = certificates.authority(SERVICE, datetime.now(UTC)).secret(OWN, SERVICE, {})
    site.cluster.objects[key] = {**made, "data": {"tls.crt": "eA=="}}
    settings = MetricsApiSettings(port=site.port)
    api = MetricsApi(site.cluster, site.pods, site.review, settings, OWN, host="127.0.0.1")
    with pytest.raises(ValueError, match=r"Secret operators/.* delete it, and a new one is made"):
        await api._look()
    assert site.cluster.objects[key]["data"] == {"tls.crt": "eA=="}


@pytest.mark.parametrize("kind", ["rsa", "with a password"])
async def test_a_key_that_can_not_sign_is_told_and_another_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("llm_operator.metricsapi.part.RETRY_SECONDS", 0.01)
    made = certificates.authority(SERVICE, datetime.now(UTC))
    key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else serialization.load_pem_private_key(made.key.encode(), None)
    )
    locked = (
        serialization.NoEncryption()
        if kind == "rsa"
        else serialization.BestAvailableEncryption(b"secret")
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
    ).decode()
    place = ("Secret", OWN, SERVICE)
    site.cluster.objects[place] = Signed(made.certificate, text).secret(OWN, SERVICE, {})
    settings = MetricsApiSettings(port=site.port)
    api = MetricsApi(site.cluster, site.pods, site.review, settings, OWN, host="127.0.0.1")
    api.lead(site.cluster)
    task = asyncio.create_task(api.run())
    try:
        await until(lambda: "delete it, and a new one is made" in api.advice)
        del site.cluster.objects[place]
        await until(lambda: not api.advice)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def test_certificates_are_renewed_before_they_end(site: Site) -> None:
    now = [datetime.now(UTC)]
    settings = MetricsApiSettings(port=site.port)
    api = MetricsApi(
        site.cluster, site.pods, site.review, settings, OWN, host="127.0.0.1", now=lambda: now[0]
    )
    try:
        await api._look()
        secret = site.cluster.objects["Secret", OWN, SERVICE]
        first = api._runner
        await api._look()
        assert api._runner is first
        now[0] += timedelta(days=61)
        await api._look()
        assert api._runner is not first
        assert site.cluster.objects["Secret", OWN, SERVICE] == secret
        now[0] += timedelta(days=365 * 9)
        await api._look()
        renewed = Signed.read(site.cluster.objects["Secret", OWN, SERVICE])
        assert renewed.ends > now[0] + timedelta(days=3000)
    finally:
        await api.close()


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (16.0, "16"), (0.375, "375m"), (12.5, "12500m"), (1e15, "1" + 15 * "0")],
)
def test_quantities_are_whole_or_in_thousandths(value: float, written: str) -> None:
    assert quantity(value) == written
