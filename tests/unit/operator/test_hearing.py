"""Ready means that the watches hear, or that the lease is another's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from yarl import URL

from llm_operator.hearing import GRACE_SECONDS, Hearing
from llm_operator.lease import Lease
from llm_operator.ports.cluster import path_of
from llm_operator.probes import STUCK_WATCH_SECONDS, Health
from llm_operator.settings import LeaseSettings
from unit.operator.fakes import FakeCluster
from unit.operator.test_lease import Ticks


class Answer:
    """A response as far as it is looked at."""

    def __init__(self, status: int = 200, message: str = "") -> None:
        self.status = status
        self._message = message

    async def text(self) -> str:
        return f'{{"message": "{self._message}"}}'


async def ask(
    hearing: Hearing,
    kind: str,
    answer: Answer | Exception,
    watch: bool = False,
    namespace: str = "",
) -> None:
    """One request of the watcher, with this outcome."""
    url = URL(f"https://api/prefix{path_of(kind, namespace)}").with_query(
        {"watch": "true"} if watch else {}
    )

    async def handler(_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    request = cast("aiohttp.ClientRequest", SimpleNamespace(url=url))
    if isinstance(answer, Exception):
        with pytest.raises(type(answer)):
            await hearing.observe(request, handler)
    else:
        await hearing.observe(request, handler)


async def heard(
    kinds: tuple[str, ...] = ("Pod",), clock: Callable[[], float] | None = None
) -> Hearing:
    """Watches that hear."""
    hearing = Hearing(kinds, clock=clock or Ticks())
    hearing.begin()
    for kind in kinds:
        await ask(hearing, kind, Answer())
        await ask(hearing, kind, Answer(), watch=True)
    assert hearing.missing() == []
    return hearing


async def test_a_list_alone_is_not_heard_a_watch_after_it_is() -> None:
    hearing = Hearing(("Pod", "Service"))
    assert hearing.missing() == ["the watches have not begun yet"]
    hearing.begin()
    await ask(hearing, "Service", Answer())
    await ask(hearing, "Service", Answer(), watch=True)
    await ask(hearing, "Pod", Answer())
    assert hearing.missing() == ["the watch of Pod hears nothing: its first list is being read"]
    assert hearing.kinds() == {"Pod": False, "Service": True}
    await ask(hearing, "Pod", Answer(), watch=True)
    assert hearing.missing() == []


async def test_a_kind_that_may_not_be_listed_is_named_with_the_api_servers_words() -> None:
    hearing = Hearing(("Pod",))
    hearing.begin()
    await ask(hearing, "Pod", Answer(403, "pods is forbidden"))
    assert hearing.missing() == ["the watch of Pod hears nothing: 403: pods is forbidden"]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_namespace_that_is_gone_is_told_and_ends_nobody(status: int) -> None:
    """Liveness can't mend rights: the operator would be ended every five minutes for all other
    namespaces, too."""
    now = 0.0
    hearing = Hearing(("Pod",), ("gone", "busy"), lambda: now)
    hearing.begin()
    await ask(hearing, "Pod", Answer(), watch=True, namespace="busy")
    await ask(hearing, "Pod", Answer(status, "no"), namespace="gone")
    now = 1000.0
    assert hearing.silence() == 0
    assert hearing.missing() == [f"the watch of Pod in namespace gone hears nothing: {status}: no"]
    await ask(hearing, "Pod", Answer(500, "etcd is away"), namespace="gone")
    assert hearing.silence() == 1000


async def test_every_namespace_has_a_stream_of_its_own() -> None:
    hearing = Hearing(("Pod",), ("one", "two"))
    hearing.begin()
    await ask(hearing, "Pod", Answer(), watch=True, namespace="one")
    assert [each.split(" hears")[0] for each in hearing.missing()] == [
        "the watch of Pod in namespace two"
    ]


async def test_a_kind_that_the_api_server_does_not_know_is_asked_for_by_nobody() -> None:
    hearing = Hearing(("LLMDeployment",))
    hearing.begin()
    assert "install its CRD" in hearing.missing()[0]


async def test_a_stream_that_ends_is_missed_only_when_it_stays_away() -> None:
    clock = Ticks()
    hearing = await heard(clock=clock)
    await ask(hearing, "Pod", aiohttp.ClientConnectionError("refused"), watch=True)
    clock.now = GRACE_SECONDS - 1
    assert hearing.missing() == []
    clock.now = GRACE_SECONDS + 1
    await ask(hearing, "Pod", aiohttp.ClientConnectionError("refused"), watch=True)
    assert hearing.missing() == ["the watch of Pod hears nothing: ClientConnectionError: refused"]
    await ask(hearing, "Pod", Answer(), watch=True)
    assert hearing.missing() == []


def health(lease: Lease, hearing: Hearing) -> Health:
    return Health(lambda: 0.0, lambda: 0.0, lease, 15.0, hearing)


async def test_watches_that_stay_deaf_fail_liveness_by_name() -> None:
    clock = Ticks()
    hearing = await heard(clock=clock)
    lease = Lease(FakeCluster(), LeaseSettings(), "one", clock)
    await ask(hearing, "Pod", aiohttp.ClientConnectionError("refused"), watch=True)
    clock.now = STUCK_WATCH_SECONDS - 1
    assert health(lease, hearing).faults() == []
    clock.now = STUCK_WATCH_SECONDS + 1
    assert health(lease, hearing).faults() == [
        "the watch of Pod hears nothing: ClientConnectionError: refused"
    ]


async def test_a_stand_by_is_ready_without_watches_and_a_leader_is_not() -> None:
    cluster = FakeCluster()
    clock = Ticks()
    leader = Lease(cluster, LeaseSettings(), "one", clock)
    other = Lease(cluster, LeaseSettings(), "two", clock)
    silent = Hearing(("Pod",))
    assert health(leader, silent).missing() == ["the lease has not been read yet"]
    await leader._attempt()
    await other._attempt()
    assert health(other, silent).missing() == []
    assert health(leader, silent).missing() == ["the watches have not begun yet"]
    assert health(leader, await heard()).missing() == []


async def test_who_can_not_read_the_lease_is_not_ready_and_says_why() -> None:
    cluster = FakeCluster()
    cluster.down = True
    candidate = Lease(cluster, LeaseSettings(), "one", Ticks())
    await candidate._attempt()
    assert health(candidate, Hearing(("Pod",))).missing() == ["the API server does not answer"]
