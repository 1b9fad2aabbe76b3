"""/livez, /readyz and /metrics of the operator itself. The probes of the pods are in
plans/objects/containers.py."""

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from llm_operator.hearing import Hearing
from llm_operator.lease import Lease

STUCK_QUEUE_SECONDS = 300.0
STUCK_API_SECONDS = 300.0
STUCK_WATCH_SECONDS = 300.0


class Health:
    """Whether this process still does its work:
    nothing waits too long, the API server is heard, the lease is fresh."""

    def __init__(
        self,
        stuck: Callable[[], float],
        silence: Callable[[], float],
        lease: Lease,
        lease_limit: float,
        hearing: Hearing,
    ) -> None:
        self._stuck = stuck
        self._silence = silence
        self._lease = lease
        self._lease_limit = lease_limit
        self._hearing = hearing

    def faults(self) -> list[str]:
        """What is stuck; empty when all is well."""
        found = []
        if self._stuck() > STUCK_QUEUE_SECONDS:
            found.append(
                "a key has been in work, or keys have waited and none was taken, for"
                f" {self._stuck():.0f} s"
            )
        if self._silence() > STUCK_API_SECONDS:
            found.append(f"the API server was last heard {self._silence():.0f} s ago")
        if self._lease.age() > self._lease_limit:
            found.append(f"the lease was last renewed {self._lease.age():.0f} s ago")
        if self._hearing.silence() > STUCK_WATCH_SECONDS:
            found += self._hearing.missing()
        return found

    def missing(self) -> list[str]:
        """What keeps this process from being ready:
        a stand-by has read another's lease, the leader's watches hear."""
        if self._lease.renewed_at is None:
            return (
                []
                if self._lease.standing_by
                else [self._lease.doubt or "the lease has not been read yet"]
            )
        return self._hearing.missing()


async def serve(
    health: Health, host: str | None, port: int, refresh: Callable[[], None]
) -> web.AppRunner:
    """Start answering on `host` (None: all addresses);
    `refresh` brings gauges up to date before a scrape."""

    async def live(_: web.Request) -> web.Response:
        faults = health.faults()
        return web.json_response(
            {"status": "stuck" if faults else "ok", "faults": faults}, status=500 if faults else 200
        )

    async def ready(_: web.Request) -> web.Response:
        missing = health.missing()
        return web.json_response(
            {"status": "not ready" if missing else "ok", "missing": missing},
            status=503 if missing else 200,
        )

    async def scrape(_: web.Request) -> web.Response:
        refresh()
        # With thousands of objects it takes half a second, which nothing else should wait for.
        body = await asyncio.to_thread(generate_latest)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/livez", live), web.get("/readyz", ready), web.get("/metrics", scrape)]
    )
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host=host, port=port).start()
    return runner
