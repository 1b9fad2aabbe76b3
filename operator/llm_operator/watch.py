"""The only file that imports kopf: it turns events into keys, and shows the mirror what they say."""

import asyncio
import functools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import aiohttp
import kopf
import orjson

from llm_operator.crds import API_VERSION
from llm_operator.hearing import Hearing
from llm_operator.mirror import Mirror, Place, Sighting
from llm_operator.plans.names import DEPLOYMENT_LABEL, MANAGED_SELECTOR
from llm_operator.ports.cluster import KINDS, open_session
from llm_operator.reconcile.keyfile import KIND as KEY_FILE
from llm_operator.state import Key, Manifest

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
    add: Callable[[Key], None],
    namespaces: tuple[str, ...],
    identity: str,
    hearing: Hearing,
    mirror: Mirror,
) -> None:
    """Watch until cancelled or a fault;
    `add` gets the key of whatever changed, `hearing` sees every request, and `mirror` every object.

    In a thread with a loop of its own:
    at its end kopf cancels every task of its loop, ours among them.
    """
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    hearing.begin()

    def run() -> None:
        kopf.run(
            registry=_registry(loop.call_soon_threadsafe, _Heard(add, mirror), hearing),
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


class _Heard:
    """What becomes of an event, in the thread of those who reconcile."""

    def __init__(self, add: Callable[[Key], None], mirror: Mirror) -> None:
        self._add = add
        self.mirror = mirror
        self._labels: dict[str, object] = {}
        """By uid of an LLMDeployment, as last heard."""

    def event(self, sighting: Sighting, resource: Manifest, *, gone: bool) -> None:
        """Note the object first: who takes one of the keys is to find it as the event showed it."""
        (self.mirror.lose if gone else self.mirror.see)(sighting)
        for key in self._keys(resource, gone=gone):
            self._add(key)

    def page(self, place: Place, items: list[Sighting], *, last: bool) -> None:
        """A page of what a watch lists when it begins. Of each object an event follows, but of
        those that have vanished meanwhile."""
        for sighting in self.mirror.page(place, items, last=last):
            for key in self._keys(sighting.manifest(), gone=True):
                self._add(key)

    def _keys(self, resource: Manifest, *, gone: bool) -> Iterator[Key]:
        meta = resource["metadata"]
        if resource["kind"] not in OWN:
            if (owner := _owner(resource)) is not None:
                yield owner
            return
        yield Key(resource["kind"], meta["namespace"], meta["name"])
        if resource["kind"] != "LLMDeployment":
            return
        # Keys choose deployments by their labels,
        # and while nobody watched some may have been deleted.
        now = meta.get("labels") or {}
        if gone:
            self._labels.pop(meta["uid"], None)
        elif self._labels.get(meta["uid"]) != now:
            self._labels[meta["uid"]] = now
            yield Key(KEY_FILE, meta["namespace"], meta["name"])


def _owner(child: Manifest) -> Key | None:
    meta = child["metadata"]
    if name := (meta.get("labels") or {}).get(DEPLOYMENT_LABEL):
        return Key("LLMDeployment", meta["namespace"], name)
    for reference in meta.get("ownerReferences") or []:
        # The label was edited away; the owner reference still tells.
        if reference.get("apiVersion") == API_VERSION:
            return Key(reference["kind"], meta["namespace"], reference["name"])
    return None


class _Lists:
    """An aiohttp middleware that reads what watches list when they begin, and hands it on.

    kopf tells of each listed object as of an event, but neither that the list is whole nor what was
    there before and is not in it.
    """

    def __init__(self, call: Callable[..., object], heard: _Heard, hearing: Hearing) -> None:
        self._call = call
        self._heard = heard
        self._hearing = hearing

    async def observe(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        found = self._hearing.place(request.url.path)
        query = request.url.query
        if found is None or query.get("watch") == "true":
            return await handler(request)
        place = Place(*found)
        if "continue" not in query:
            self._call(self._heard.mirror.begin, place)
        answer = await handler(request)
        if answer.status == 200:
            content = orjson.loads(await answer.read())  # aiohttp keeps it for kopf.
            version = KINDS[place.kind][0]
            # Items of a list carry neither kind nor apiVersion.
            items = [
                Sighting.of({"apiVersion": version, "kind": place.kind, **item})
                for item in content["items"]
            ]
            last = not content["metadata"].get("continue")
            self._call(functools.partial(self._heard.page, place, items, last=last))
        return answer


def _registry(
    call: Callable[..., object], heard: _Heard, hearing: Hearing
) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    lists = _Lists(call, heard, hearing)

    async def event(event: kopf.RawEvent, **_: Any) -> None:
        resource = cast("Manifest", event["object"])
        gone = event["type"] == "DELETED"
        call(functools.partial(heard.event, Sighting.of(resource), resource, gone=gone))

    async def login(memo: kopf.Memo, **_: Any) -> kopf.AiohttpSession:
        if memo.get("logged_in"):
            # The credentials were refused. kopf asks again at once, for as long as they are.
            await asyncio.sleep(LOGIN_PAUSE_SECONDS)
        memo["logged_in"] = True
        server, session = await open_session(lists.observe, hearing.observe)
        return kopf.AiohttpSession(server=server, aiohttp_session=session)

    kopf.on.login(registry=registry)(login)
    for kind in WATCHED:
        kopf.on.event(*_resource(kind), id=kind, registry=registry)(event)
    return registry


class _NoEssence(kopf.DiffBaseStorage):
    """Keeps kopf from copying every object of every event, to tell changes that nobody asks for."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return {}

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing: the objects are not kopf's to write to."""


def _resource(kind: str) -> tuple[str, str, str]:
    version, plural = KINDS[kind]
    group, _, number = version.rpartition("/")
    return group, number, plural


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoEssence()
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
