"""Which of several operators works: a coordination.k8s.io Lease,
as client-go's leader election uses it."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from llm_operator import metrics
from llm_operator.crds import GROUP
from llm_operator.ports.cluster import ApiError, Cluster
from llm_operator.settings import LeaseSettings
from llm_operator.state import Manifest

log = logging.getLogger(__name__)
ADDRESS_ANNOTATION = f"{GROUP}/webhooks"


class LeaseLost(Exception):
    """Another operator may be working: this process must end."""


class Lease:
    """One candidate. Clocks of machines are never compared: a lease is over when it has not changed
    for its duration by our own clock."""

    def __init__(
        self,
        cluster: Cluster,
        settings: LeaseSettings,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        address: str = "",
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self.identity = identity
        """Which candidate this is, in the lease and for the watches."""
        self._address = address
        self._seen: tuple[str, float] = ("", 0.0)
        self.leader_address = ""
        """Where the other that holds the lease takes webhooks, as far as a stand-by knows."""
        self.renewed_at: float | None = None
        """When it was last ours, by the clock; None for a stand-by."""
        self.standing_by = False
        """Whether the last look found it to be another's."""
        self.doubt = ""
        """Why the last look failed; empty when it did not."""

    async def acquire(self) -> None:
        """Wait until this candidate holds the lease."""
        log.info(
            "waiting for lease %s/%s as %s",
            self._settings.namespace,
            self._settings.name,
            self.identity,
        )
        while not await self._attempt():  # noqa: ASYNC110 - another process's lease can't set an Event
            await asyncio.sleep(self._settings.retry_seconds)
        metrics.LEADER.set(1)
        log.info("holding lease %s/%s", self._settings.namespace, self._settings.name)

    async def keep(self) -> None:
        """Renew for ever. Raises LeaseLost when that failed for too long or another holds it."""
        while True:
            await asyncio.sleep(self._settings.retry_seconds)
            await self._attempt()
            if self.age() > self._settings.renew_deadline_seconds:
                metrics.LEADER.set(0)
                raise LeaseLost(
                    f"lease {self._settings.name} was not renewed for {self.age():.0f} s"
                )

    async def release(self) -> None:
        """Let a stand-by take over at once."""
        if self.renewed_at is None:
            return
        self.renewed_at = None
        try:
            live = await self._read()
            if live is not None and live["spec"].get("holderIdentity") == self.identity:
                await self._write(live, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except ApiError as error:
            log.warning("the lease was not released: %s", error)

    def age(self) -> float:
        """Seconds since the last renewal; 0 for a stand-by."""
        return 0.0 if self.renewed_at is None else self._clock() - self.renewed_at

    async def _attempt(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.renew_deadline_seconds):
                return await self._try()
        except (ApiError, TimeoutError) as error:
            self.standing_by = False
            self.doubt = str(error) or "the API server gave no answer in time"
            log.warning("lease %s: %s", self._settings.name, self.doubt)
            return False

    async def _try(self) -> bool:
        started = self._clock()
        live = await self._read()
        self.doubt = ""
        if live is None:
            await self._cluster.create(self._manifest())
        elif not self._may_take(live):
            self.leader_address = (live["metadata"].get("annotations") or {}).get(
                ADDRESS_ANNOTATION, ""
            )
            self.standing_by = True
            return False
        else:
            await self._write(live, self._claim(live))
        self.renewed_at = started
        self.standing_by = False
        return True

    async def _read(self) -> Manifest | None:
        return await self._cluster.get("Lease", self._settings.namespace, self._settings.name)

    def _may_take(self, live: Manifest) -> bool:
        spec = live["spec"]
        if spec.get("holderIdentity") in (self.identity, "", None):
            return True
        version = live["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
            return False
        return self._clock() - self._seen[1] > float(spec.get("leaseDurationSeconds") or 15)

    def _claim(self, live: Manifest | None) -> Manifest:
        now = _now()
        before = (live or {}).get("spec", {})
        mine = before.get("holderIdentity") == self.identity
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, int(self._settings.duration_seconds)),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if mine else 1),
        }

    async def _write(self, live: Manifest, spec: Manifest) -> None:
        # The resourceVersion makes it conditional: of two candidates one gets a Conflict.
        meta = {
            "resourceVersion": live["metadata"]["resourceVersion"],
            "annotations": self._annotations(),
        }
        change = {"metadata": meta, "spec": spec}
        await self._cluster.patch("Lease", self._settings.namespace, self._settings.name, change)

    def _manifest(self) -> Manifest:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._settings.name,
                "namespace": self._settings.namespace,
                "annotations": self._annotations(),
            },
            "spec": self._claim(None),
        }

    def _annotations(self) -> dict[str, str]:
        return {ADDRESS_ANNOTATION: self._address}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
