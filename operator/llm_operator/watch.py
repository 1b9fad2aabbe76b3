"""The only file that imports kopf: it turns events into keys. What an event said is forgotten."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import kopf

from llm_operator.crds import API_VERSION
from llm_operator.hearing import Hearing
from llm_operator.plans.names import DEPLOYMENT_LABEL, MANAGED_SELECTOR
from llm_operator.ports.cluster import KINDS, open_session
from llm_operator.reconcile.keyfile import KIND as KEY_FILE
from llm_operator.state import Key

OWN = ("LLMDeployment", "ApiKey")
CHILDREN = (
    "Deployment", "ConfigMap", "Service", "ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Pod",
)  # fmt: skip
WATCHED = (*OWN, *CHILDREN)


class Backoffs:
    """Waits between attempts to reach the API server, without an end:
    an outage must not end the operator."""

    def __iter__(self) -> Iterator[float]:
        for seconds in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
            yield seconds * random.uniform(1.0, 1.25)
        while True:
            yield 30.0 * random.uniform(0.75, 1.0)


LOGIN_PAUSE_SECONDS = 5.0


async def watch(
    add: Callable[[Key], None], namespaces: tuple[str, ...], identity: str, hearing: Hearing
) -> None:
    """Watch until cancelled or a fault;
    `add` gets the key of whatever changed, `hearing` sees every request.

    In a thread with a loop of its own:
    at its end kopf cancels every task of its loop, ours among them.
    """
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    hearing.begin()

    def run() -> None:
        kopf.run(
            registry=_registry(lambda key: loop.call_soon_threadsafe(add, key), hearing),
            settings=_settings(),
            # Else kopf makes one of the user's name, and the image's user has none.
            identity=cast("Any", identity),
            stop_flag=stop,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )

    try:
        await asyncio.to_thread(run)
    finally:
        stop.set()
    raise RuntimeError("the watches ended by themselves")


def _registry(add: Callable[[Key], object], hearing: Hearing) -> kopf.OperatorRegistry:  # noqa: C901 (holds its handlers)
    registry = kopf.OperatorRegistry()

    labels: dict[str, dict[str, str]] = {}

    async def own(body: kopf.Body, **event: Any) -> None:
        meta = body["metadata"]
        add(Key(body["kind"], meta["namespace"], meta["name"]))
        if body["kind"] != "LLMDeployment":
            return
        # Keys choose deployments by their labels,
        # and while nobody watched some may have been deleted.
        now = None if event["type"] == "DELETED" else dict(meta.get("labels") or {})
        if now is None:
            labels.pop(meta["uid"], None)
        elif labels.get(meta["uid"]) != now:
            labels[meta["uid"]] = now
            add(Key(KEY_FILE, meta["namespace"], meta["name"]))

    async def child(body: kopf.Body, **_: Any) -> None:
        name = (body["metadata"].get("labels") or {}).get(DEPLOYMENT_LABEL)
        if name:
            add(Key("LLMDeployment", body["metadata"]["namespace"], name))
            return
        for reference in body["metadata"].get("ownerReferences") or []:
            # The label was edited away; the owner reference still tells.
            if reference.get("apiVersion") == API_VERSION:
                add(Key(reference["kind"], body["metadata"]["namespace"], reference["name"]))

    async def login(memo: kopf.Memo, **_: Any) -> kopf.AiohttpSession:
        if memo.get("logged_in"):
            # The credentials were refused. kopf asks again at once, for as long as they are.
            await asyncio.sleep(LOGIN_PAUSE_SECONDS)
        memo["logged_in"] = True
        server, session = await open_session(hearing.observe)
        return kopf.AiohttpSession(server=server, aiohttp_session=session)

    kopf.on.login(registry=registry)(login)
    for kind in OWN:
        kopf.on.event(*_resource(kind), id=kind, registry=registry)(own)
    for kind in CHILDREN:
        kopf.on.event(*_resource(kind), id=kind, registry=registry)(child)
    return registry


def _resource(kind: str) -> tuple[str, str, str]:
    version, plural = KINDS[kind]
    group, _, number = version.rpartition("/")
    return group, number, plural


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    # Everything that is watched is known: no permission to list CRDs or namespaces is needed.
    settings.scanning.disabled = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = Backoffs()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    for kind in CHILDREN:
        # On the server: a handler's own labels would filter here,
        # after every pod of the cluster had been sent. By a tuple: a string is only ever a name.
        settings.watching.label_selectors[_resource(kind)] = MANAGED_SELECTOR
    return settings
