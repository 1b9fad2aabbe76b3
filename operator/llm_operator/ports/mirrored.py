"""The Cluster port with a mirror before it: what the watches show is not asked for."""

import builtins
from collections.abc import Callable, Collection

from llm_operator.mirror import Mirror, Sighting
from llm_operator.plans.names import DEPLOYMENT_LABEL, managed
from llm_operator.ports.cluster import Cluster, Read, Unanswered
from llm_operator.state import Manifest


class MirroredCluster:
    """Lists and `seen` come from the mirror where it can tell; all else is asked of `cluster`.

    `whole`: kinds all of whose objects are watched. `labelled`: kinds of which those are watched
    that have our label.
    """

    def __init__(
        self, cluster: Cluster, mirror: Mirror, whole: Collection[str], labelled: Collection[str]
    ) -> None:
        self._cluster = cluster
        self._mirror = mirror
        self._whole = frozenset(whole)
        self._labelled = frozenset(labelled)

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return await self._cluster.get(kind, namespace, name)

    async def seen(self, kind: str, namespace: str, name: str) -> Manifest | None:
        found = self._mirror.find(kind, namespace, name)
        return await self._cluster.get(kind, namespace, name) if found is None else found

    async def list(
        self, kind: str, namespace: str, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        label, _, deployment = labels.partition("=")
        found = None
        if not fields and label == DEPLOYMENT_LABEL and kind in self._labelled:
            found = self._mirror.select(kind, namespace, deployment)
        elif not fields and not labels and kind in self._whole:
            found = self._mirror.select(kind, namespace, None)
        return await self._cluster.list(kind, namespace, labels, fields) if found is None else found

    async def read(
        self, kind: str, namespace: str, reader: Callable[[Manifest], Read]
    ) -> builtins.list[Read]:
        found = self._mirror.read(kind, namespace, reader) if kind in self._whole else None
        return await self._cluster.read(kind, namespace, reader) if found is None else found

    async def apply(self, manifest: Manifest) -> Manifest:
        return self._note(await self._cluster.apply(manifest))

    async def apply_status(self, manifest: Manifest) -> Manifest:
        return self._note(await self._cluster.apply_status(manifest))

    async def create(self, manifest: Manifest) -> Manifest:
        return self._note(await self._cluster.create(manifest))

    async def patch(self, kind: str, namespace: str, name: str, change: Manifest) -> Manifest:
        return self._note(await self._cluster.patch(kind, namespace, name, change))

    async def delete(self, kind: str, namespace: str, name: str, uid: str = "") -> None:
        try:
            await self._cluster.delete(kind, namespace, name, uid)
        except Unanswered:
            self._mirror.doubt(kind, namespace, name)  # It may have been deleted.
            raise
        self._mirror.doubt(kind, namespace, name)

    async def serves(self, kind: str) -> bool:
        return await self._cluster.serves(kind)

    def _note(self, live: Manifest) -> Manifest:
        kind = live["kind"]
        if kind in self._whole or (kind in self._labelled and managed(live)):
            self._mirror.see(Sighting.of(live))
        return live
