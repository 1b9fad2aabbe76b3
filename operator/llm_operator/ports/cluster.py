"""All Kubernetes I/O behind one port. Objects are plain JSON; errors are few and say what they are.

ApiError
├── NotFound     404: no such object
├── Conflict     409: it is there already, or has changed since it was read
├── Refused      401, 403 and other 4xx: this request will not be granted as it is
│   └── Invalid  422 that names a field: nor any other for this object
└── Unavailable  429, 5xx: later, perhaps
    └── Unanswered  no connection, or no answer in time
"""

import builtins
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import aiohttp
import orjson
from kubernetes.aio import client, config
from kubernetes.aio.config import ConfigException
from kubernetes.aio.config.incluster_config import SERVICE_TOKEN_FILENAME

from llm_operator import metrics
from llm_operator.crds import API_VERSION
from llm_operator.ports.proxies import proxy_for, without_password
from llm_operator.state import Manifest

MANAGER = "llm-operator"
TIMEOUT_SECONDS = 15.0
Read = TypeVar("Read")
NOTHING: Mapping[str, str] = MappingProxyType({})
BY_US: Mapping[str, str] = MappingProxyType({"fieldManager": MANAGER})

KINDS: dict[str, tuple[str, str]] = {
    "LLMDeployment": (API_VERSION, "llmdeployments"),
    "ApiKey": (API_VERSION, "apikeys"),
    "Deployment": ("apps/v1", "deployments"),
    "ReplicaSet": ("apps/v1", "replicasets"),
    "Service": ("v1", "services"),
    "ConfigMap": ("v1", "configmaps"),
    "Secret": ("v1", "secrets"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "Pod": ("v1", "pods"),
    "Event": ("v1", "events"),
    "Node": ("v1", "nodes"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "ServiceMonitor": ("monitoring.coreos.com/v1", "servicemonitors"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "httproutes"),
    "Namespace": ("v1", "namespaces"),
    "Job": ("batch/v1", "jobs"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    "ScaledObject": ("keda.sh/v1alpha1", "scaledobjects"),
    "APIService": ("apiregistration.k8s.io/v1", "apiservices"),
    "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles"),
}


class ApiError(Exception):
    """The API server did not do what was asked."""


class NotFound(ApiError):
    """No such object."""


class Conflict(ApiError):
    """The object exists already, or has changed since it was read."""


class Refused(ApiError):
    """Not granted, and not if asked again the same way."""


class Invalid(Refused):
    """The object is invalid, whoever sends it."""


class Unavailable(ApiError):
    """The API server can't answer now, or not this."""


class Unanswered(Unavailable):
    """The API server said nothing."""


class NoCluster(Exception):
    """Nothing says where the API server is, or what is said can't be read."""


class Cluster(Protocol):
    """What the operator does to a cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object as it is now, or None."""

    async def seen(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The same as it was last shown by a watch, where it is watched: it may have changed a
        moment ago, and an event will tell."""

    async def list(
        self, kind: str, namespace: str, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        """The objects of a namespace ("" for all) that match both selectors."""

    async def read(
        self, kind: str, namespace: str, reader: Callable[[Manifest], Read]
    ) -> builtins.list[Read]:
        """What `reader` makes of each object of a namespace. It must be a function of the object
        alone, and what it returns must not be changed: it may be kept."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply: create, or put owned fields right. Returns the live object."""

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Replace the status of the object with this uid.
        Raises Conflict when another one has its name."""

    async def create(self, manifest: Manifest) -> Manifest:
        """Create. Raises Conflict when it exists."""

    async def patch(self, kind: str, namespace: str, name: str, change: Manifest) -> Manifest:
        """JSON merge patch; with metadata.resourceVersion in it,
        only if unchanged (else Conflict)."""

    async def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        """Delete, if it is still the object with this uid; gone already is fine."""

    async def serves(self, kind: str) -> bool:
        """Whether the cluster knows a kind that may not be installed."""


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """The REST path of an object or, without a name, of its collection."""
    version, plural = KINDS[kind]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{place}/{plural}" + (f"/{name}" if name else "")


class KubernetesCluster:
    """The port on a real API server, by the official asynchronous client."""

    def __init__(self, api: client.ApiClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._where = describe(api.configuration)
        self._served: dict[str, tuple[float, bool]] = {}
        self.last_answer = clock()
        """When the API server last answered anything, for the liveness probe."""

    @classmethod
    async def connect(cls) -> "KubernetesCluster":
        """By the pod's ServiceAccount, else by $KUBECONFIG or ~/.kube/config. Raises NoCluster."""
        return cls(client.ApiClient(await configuration()))

    @property
    def where(self) -> str:
        """The address that is asked, and through which proxy."""
        return self._where

    async def close(self) -> None:
        await self._api.close()

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        try:
            return await self._call("GET", path_of(kind, namespace, name))
        except NotFound:
            return None

    async def seen(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return await self.get(kind, namespace, name)

    async def list(
        self, kind: str, namespace: str, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        path = path_of(kind, namespace)
        query = {"limit": "500"}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        found = []
        while True:
            page = await self._call("GET", path, query)
            # Items of a list carry neither kind nor apiVersion.
            found += [
                {"apiVersion": KINDS[kind][0], "kind": kind, **item} for item in page["items"]
            ]
            if not (token := page["metadata"].get("continue")):
                return found
            query["continue"] = token

    async def read(
        self, kind: str, namespace: str, reader: Callable[[Manifest], Read]
    ) -> builtins.list[Read]:
        return [reader(item) for item in await self.list(kind, namespace)]

    async def apply_status(self, manifest: Manifest) -> Manifest:
        # Not server-side apply: of a custom resource's applied status the API server ignores the
        # uid.
        meta = manifest["metadata"]
        kind = manifest["kind"]
        metrics.WRITES.labels("apply", kind).inc()
        try:
            return await self._call(
                "PATCH",
                path_of(kind, meta["namespace"], meta["name"]) + "/status",
                BY_US,
                [
                    {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
                    {"op": "add", "path": "/status", "value": manifest["status"]},
                ],
                "application/json-patch+json",
            )
        except Refused as error:
            # The answer to a patch whose `test` fails. A status that the schema refuses is answered
            # otherwise.
            if "error in our request" in str(error):
                raise Conflict(f"{kind} {meta['name']} is another one now: {error}") from None
            raise

    async def apply(self, manifest: Manifest) -> Manifest:
        meta = manifest["metadata"]
        kind = manifest["kind"]
        metrics.WRITES.labels("apply", kind).inc()
        return await self._call(
            "PATCH",
            path_of(kind, meta.get("namespace", ""), meta["name"]),
            {**BY_US, "force": "true"},
            manifest,
            "application/apply-patch+yaml",
        )

    async def create(self, manifest: Manifest) -> Manifest:
        metrics.WRITES.labels("create", manifest["kind"]).inc()
        path = path_of(manifest["kind"], manifest["metadata"].get("namespace", ""))
        return await self._call("POST", path, BY_US, manifest)

    async def patch(self, kind: str, namespace: str, name: str, change: Manifest) -> Manifest:
        metrics.WRITES.labels("patch", kind).inc()
        path = path_of(kind, namespace, name)
        return await self._call("PATCH", path, BY_US, change, "application/merge-patch+json")

    async def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        metrics.WRITES.labels("delete", kind).inc()
        body = {
            "propagationPolicy": "Background",
            **({"preconditions": {"uid": uid}} if uid else {}),
        }
        try:
            await self._call("DELETE", path_of(kind, namespace, name), body=body)
        except (NotFound, Conflict):
            # Conflict: another object has taken the name since; it is not the one meant.
            return

    async def review(self, spec: Manifest) -> Manifest:
        """The status of a SubjectAccessReview: whether somebody may do something. Nothing is
        written by it."""
        kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer = await self._call("POST", path, body={**kind, "spec": spec})
        found: Manifest = answer["status"]
        return found

    async def serves(self, kind: str) -> bool:
        until, known = self._served.get(kind, (0.0, False))
        if self._clock() < until:
            return known
        group, plural = KINDS[kind]
        try:
            found = await self._call("GET", f"/apis/{group}")
            known = any(resource["name"] == plural for resource in found["resources"])
        except NotFound:
            known = False
        self._served[kind] = (self._clock() + 60.0, known)
        return known

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] = NOTHING,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Manifest:
        # Not by the dynamic client: it formats a stack trace for every 404.
        try:
            request = await self._api.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unanswered(unanswered(self._where, error)) from error
        self.last_answer = self._clock()
        if not 200 <= answer.status < 300:
            raise _explain(answer.status, answer.reason, content, path)
        found: Manifest = orjson.loads(content)
        return found


def in_cluster() -> bool:
    """Whether this process runs in a pod with a ServiceAccount token and no other way was asked
    for."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and Path(SERVICE_TOKEN_FILENAME).exists()


async def configuration() -> client.Configuration:
    """The API server's address, credentials and proxy, the same for every request.

    In a pod it is KUBERNETES_SERVICE_HOST, an address that needs no DNS, and never behind a proxy.
    Raises NoCluster.
    """
    found = client.Configuration()
    try:
        if in_cluster():
            config.load_incluster_config(client_configuration=found)
        else:
            await config.load_kube_config(client_configuration=found)
            found.proxy = found.proxy or proxy_for(found.host)
    except (ConfigException, OSError, ValueError) as error:
        raise NoCluster(
            f"no way to an API server: {error}. In a pod: the ServiceAccount's token is missing at"
            f" {SERVICE_TOKEN_FILENAME} (automountServiceAccountToken: true mounts it). Elsewhere:"
            " write the path of a kubeconfig into KUBECONFIG"
        ) from error
    # The environment's proxies have been read above;
    # aiohttp's own reading knows no networks in NO_PROXY.
    found.client_session_kwargs = {"trust_env": False}
    return found


async def open_session(
    *observers: Callable[
        [aiohttp.ClientRequest, aiohttp.ClientHandlerType], Awaitable[aiohttp.ClientResponse]
    ],
) -> tuple[str, aiohttp.ClientSession]:
    """The API server's address and a session that asks it as `KubernetesCluster` does,
    for long streams.

    `observers` are aiohttp middlewares that see every request, the first one first.
    For the calling event loop only. Raises NoCluster.
    """
    found = await configuration()

    async def identify(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # Asked for each request: a ServiceAccount's token is replaced every hour,
        # and its file read each minute.
        if token := await found.get_api_key_with_prefix("BearerToken"):
            request.headers["Authorization"] = token.strip()
        if found.tls_server_name:
            request.server_hostname = found.tls_server_name
        return await handler(request)

    session = aiohttp.ClientSession(
        # No limit: each stream holds a connection.
        connector=aiohttp.TCPConnector(
            limit=0, ssl=client.ApiClient(found).rest_client.ssl_context
        ),
        middlewares=(*observers, identify),
        proxy=found.proxy,
        trust_env=False,
    )
    return found.host, session


def describe(found: client.Configuration) -> str:
    """The API server's address and the way to it, for people."""
    return f"{found.host}, " + (
        f"through the proxy {without_password(found.proxy)}" if found.proxy else "without a proxy"
    )


def unanswered(where: str, error: Exception) -> str:
    """The message when the API server at `where` does not answer:
    what happened and what to do next."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            advice = "its name can't be resolved: check DNS, or write an address"
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            advice = (
                "the proxy does not let it through: correct HTTPS_PROXY, or add the host to"
                " NO_PROXY"
            )
        case aiohttp.ClientSSLError():
            advice = "TLS failed: check that the address and the CA belong to the same cluster"
        case _:
            advice = "check that it runs and that no NetworkPolicy or firewall is in between"
    return f"the API server does not answer at {where} ({type(error).__name__}: {error}); {advice}"


def _explain(status: int, reason: str, content: bytes, path: str) -> ApiError:
    try:
        answer = orjson.loads(content)
        message = answer["message"]
    except (TypeError, ValueError, KeyError):
        answer = {}
        message = f"{status} {reason}"
    kind = {404: NotFound, 409: Conflict, 422: Invalid if _names_a_field(answer) else Refused}.get(
        status, Unavailable if status == 429 or status >= 500 else Refused
    )
    return kind(f"{message} ({status} on {path})")


def _names_a_field(answer: Manifest) -> bool:
    """As the API server's validation does.
    Webhooks and policies answer 422, too, and may think otherwise later."""
    return any(cause.get("field") for cause in (answer.get("details") or {}).get("causes") or ())
