"""The metrics API as a part of the operator: it listens, follows what it depends on, and registers
itself. Its faults end nothing else."""

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from llm_operator import metrics
from llm_operator.metricsapi import certificates, registration
from llm_operator.metricsapi.answers import CUSTOM, VERSIONS
from llm_operator.metricsapi.authorization import Authorization
from llm_operator.metricsapi.certificates import Signed
from llm_operator.metricsapi.front_proxy import CONFIG_MAP, FrontProxy
from llm_operator.metricsapi.samples import Samples
from llm_operator.metricsapi.server import Server
from llm_operator.plans.names import managed
from llm_operator.ports.cluster import ApiError, Cluster, Conflict
from llm_operator.ports.pods import Pods
from llm_operator.settings import MetricsApiSettings
from llm_operator.state import Manifest

log = logging.getLogger(__name__)
LOOK_SECONDS = 30.0
"""How often the front proxy's ConfigMap, the certificates and the APIServices are looked at."""
RETRY_SECONDS = 5.0
DISABLED = (
    "the pods' metrics come from whatever serves custom.metrics.k8s.io: set metricsApi.enabled in"
    " the operator's chart, or have a metrics adapter serve them"
)


class MetricsApi:
    """`review` asks for a SubjectAccessReview. `namespace` is the operator's own; `watched` are the
    namespaces whose pods are asked, empty for all."""

    def __init__(
        self,
        cluster: Cluster,
        pods: Pods,
        review: Callable[[Manifest], Awaitable[Manifest]],
        settings: MetricsApiSettings,
        namespace: str,
        watched: tuple[str, ...] = (),
        host: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._samples = Samples(cluster, pods)
        self._authorization = Authorization(review)
        self._settings = settings
        self._place = registration.Place(namespace, settings.service, settings.service_port)
        self._watched = watched
        self._host = host
        self._now = now
        self._leads = False
        self._wake = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._served: tuple[FrontProxy, Signed] | None = None
        self._renew_at = now()
        self._trouble = "it has not been registered yet"
        """What was said last; empty: all is well."""
        self._findings = dict[str, str]()

    def lead(self, cluster: Cluster) -> None:
        """This replica leads: it registers the APIs, and `cluster` knows pods by its watch."""
        self._samples.cluster = cluster
        self._leads = True
        self._wake.set()

    @property
    def advice(self) -> str:
        """What to do where autoscalers get no metrics of pods; empty where they come from here."""
        return self._findings.get(CUSTOM, "") or self._trouble

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            try:
                await self._look()
                self._say("")
                seconds = LOOK_SECONDS
            except (ApiError, ValueError, OSError) as error:
                self._say(str(error))
                seconds = RETRY_SECONDS
            except Exception as error:
                # What is odd about one object must not end it for good.
                self._say(f"{type(error).__name__}: {error}")
                seconds = RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            self._wake.clear()

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._served = None

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("the metrics API can't be served as it should: %s", trouble)
        self._trouble = trouble

    async def _look(self) -> None:
        config_map = await self._cluster.get("ConfigMap", *CONFIG_MAP)
        proxy = FrontProxy.read((config_map or {}).get("data") or {})
        owners = await self._owners()
        authority = await self._authority(owners)
        if self._served != (proxy, authority) or self._now() >= self._renew_at:
            await self._listen(proxy, authority)
        if self._leads:
            await self._register(authority, owners)

    async def _owners(self) -> list[Manifest]:
        """The chart's ClusterRole, so that nothing is left behind when it goes: an APIService
        without its server would keep namespaces from being deleted."""
        role = await self._cluster.get("ClusterRole", "", self._settings.cluster_role)
        if role is None:
            raise ValueError(
                f"ClusterRole {self._settings.cluster_role} is not there, to own what is registered:"
                " make it, with the rights that the chart's has (rbac.create)"
            )
        reference = {name: role["metadata"][name] for name in ("name", "uid")}
        version = "rbac.authorization.k8s.io/v1"
        return [{"apiVersion": version, "kind": "ClusterRole", **reference}]

    async def _authority(self, owners: list[Manifest]) -> Signed:
        """The certificate authority in the Secret. One that is not there, or ends soon, is made."""
        namespace = self._place.namespace
        name = self._place.service
        secret = await self._cluster.get("Secret", namespace, name)
        if secret is None:
            made = certificates.authority(name, self._now())
            wanted = made.secret(namespace, name, registration.LABELS)
            wanted["metadata"]["ownerReferences"] = owners
            try:
                await self._cluster.create(wanted)
            except Conflict:
                secret = await self._cluster.get("Secret", namespace, name)
            else:
                return made
        try:
            found = Signed.read(secret or {})
        except ValueError as error:
            raise ValueError(
                f"Secret {namespace}/{name} holds no certificate authority, {error}: delete it, and"
                " a new one is made"
            ) from error
        assert secret is not None
        soon = self._now() + timedelta(days=certificates.AUTHORITY_RENEWED_DAYS)
        if found.ends > soon or not managed(secret):
            return found
        made = certificates.authority(name, self._now())
        change = made.secret(namespace, name, registration.LABELS)
        version = secret["metadata"]["resourceVersion"]
        changed = {"metadata": {"resourceVersion": version}, "data": change["data"]}
        await self._cluster.patch("Secret", namespace, name, changed)
        return made

    async def _listen(self, proxy: FrontProxy, authority: Signed) -> None:
        """Listen anew: connections that the former proxy opened are closed."""
        own = certificates.serving(authority, [self._place.host], self._now())
        context = _tls(own, proxy.authority)
        server = Server(proxy, self._samples, self._authorization, self._watched)
        await self.close()
        self._runner = web.AppRunner(
            server.app(), handle_signals=False, access_log=None, shutdown_timeout=5.0
        )
        await self._runner.setup()
        port = self._settings.port
        await web.TCPSite(self._runner, self._host, port, ssl_context=context).start()
        self._served = proxy, authority
        self._renew_at = own.ends - timedelta(days=certificates.SERVING_RENEWED_DAYS)
        log.info("the metrics API is served on port %s", port)

    async def _register(self, authority: Signed, owners: list[Manifest]) -> None:
        found = await registration.register(self._cluster, self._place, authority.bundle, owners)
        for group, why in found.items():
            if why and why != self._findings.get(group):
                log.warning("%s is not served by this operator: %s", group, why)
            elif not why and self._findings.get(group) != "":
                log.info("%s/%s is served by this operator", group, VERSIONS[group])
            metrics.METRICS_API.labels(group).set(not why)
        self._findings = found


def _tls(own: Signed, clients: str) -> ssl.SSLContext:
    """A server that asks clients for a certificate, and takes none that `clients` has not signed.
    Raises ssl.SSLError, an OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Without any certificate a client is told in HTTP what it lacks.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=clients)
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_text(own.certificate + own.key)
        context.load_cert_chain(pair)
    return context
