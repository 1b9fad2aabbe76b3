"""Leader election between candidates whose clocks are never compared."""

from __future__ import annotations

from llm_operator.lease import Lease
from llm_operator.settings import LeaseSettings
from unit.operator.fakes import FakeCluster


class Ticks:
    """One machine's clock."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def candidates() -> tuple[FakeCluster, Lease, Lease, Ticks]:
    cluster = FakeCluster()
    clock = Ticks()
    made = [Lease(cluster, LeaseSettings(namespace="team"), name, clock) for name in ("one", "two")]
    return cluster, made[0], made[1], clock


async def test_the_first_takes_it_and_the_second_waits() -> None:
    _, one, two, _ = candidates()
    assert await one._attempt()
    assert not await two._attempt()
    assert two.age() == 0.0


async def test_a_lease_that_is_renewed_is_never_taken() -> None:
    _, one, two, clock = candidates()
    for clock.now in range(0, 100, 5):
        assert await one._attempt()
        assert not await two._attempt()


async def test_a_lease_that_stands_still_for_its_duration_is_taken() -> None:
    cluster, one, two, clock = candidates()
    await one._attempt()
    await two._attempt()
    clock.now = 15.5
    assert await two._attempt()
    assert not await one._attempt()
    lease = await cluster.get("Lease", "team", "llm-operator")
    assert lease is not None
    assert lease["spec"]["leaseTransitions"] == 2


async def test_a_released_lease_is_taken_at_once() -> None:
    _, one, two, _ = candidates()
    await one._attempt()
    await one.release()
    assert await two._attempt()


async def test_age_grows_while_the_api_server_is_silent() -> None:
    cluster, one, _, clock = candidates()
    await one._attempt()
    cluster.down = True
    clock.now = 11
    assert not await one._attempt()
    assert one.age() == 11
