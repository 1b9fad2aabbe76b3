"""client-go's queue semantics, lived through without waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llm_operator.backlog import DUE_A_SECOND, DUE_AT_ONCE_SECONDS, Backlog
from llm_operator.queue import Lanes, Queue
from llm_operator.reconcile import Retry
from llm_operator.reconcile.worker import _again
from llm_operator.state import Key


def backlog() -> Backlog[str]:
    return Backlog(cap_seconds=300.0, each_seconds=300.0, jitter=lambda: 0.0)


def test_a_key_waits_at_most_once() -> None:
    queue = backlog()
    queue.add("a", 0)
    queue.add("a", 1)
    assert (queue.take(1), queue.take(1)) == ("a", None)


def test_a_key_added_while_handled_comes_back_and_is_never_handled_twice_at_once() -> None:
    queue = backlog()
    queue.add("a", 0)
    queue.take(0)
    queue.add("a", 1)
    assert queue.take(1) is None
    queue.done("a")
    assert queue.take(2) == "a"


def test_the_longest_waiting_goes_first() -> None:
    queue = backlog()
    for key in ("b", "a", "c"):
        queue.add(key, 0)
    assert [queue.take(0) for _ in range(3)] == ["b", "a", "c"]


def test_failures_double_the_delay_up_to_the_cap_and_success_forgets_them() -> None:
    queue = backlog()
    assert [queue.retry("a", 0) for _ in range(12)][:4] == [0.5, 1.0, 2.0, 4.0]
    assert queue.retry("a", 0) == 300.0
    queue.succeed("a", 0)
    assert queue.retry("a", 0) == 0.5


def slow() -> Backlog[str]:
    return Backlog(cap_seconds=30, each_seconds=0.5, jitter=lambda: 0.5)


def test_one_that_fails_for_long_is_tried_within_seconds_of_its_causes_end() -> None:
    queue = slow()
    assert max(queue.retry("a", 0) for _ in range(100)) == 4 * 1.125


def test_many_that_fail_are_tried_twice_a_second_together_and_all_of_them_once_one_succeeds() -> (
    None
):
    queue = slow()
    failing = [str(number) for number in range(200)]
    pauses = [queue.retry(item, 0) for item in failing for _ in range(8)]
    assert pauses[-1] == 30 * 1.125
    queue.succeed("0", 1)
    assert set(failing[1:]) <= {queue.take(4) for _ in failing}


def test_one_that_never_failed_brings_no_other_forward() -> None:
    queue = slow()
    queue.retry("a", 0)
    queue.add("b", 0)
    queue.take(0)
    queue.succeed("b", 0)
    assert queue.take(0.4) is None


def test_the_earlier_appointment_stands() -> None:
    queue = backlog()
    queue.add_after("a", 10, 0)
    queue.add_after("a", 600, 0)
    assert queue.next_due() == 10
    assert queue.take(9) is None
    assert queue.take(10) == "a"
    queue.done("a")
    assert queue.take(700) is None


def test_an_event_replaces_an_appointment() -> None:
    queue = backlog()
    queue.add_after("a", 10, 0)
    queue.add("a", 1)
    assert queue.take(1) == "a"
    queue.done("a")
    assert queue.take(100) is None


def test_oldest_counts_waiting_and_working_keys() -> None:
    queue = backlog()
    queue.add("a", 0)
    queue.take(5)
    assert queue.oldest(65) == 60


def shared(**fields: Any) -> Backlog[str]:
    """An item's first letter is its tenant."""
    return Backlog(jitter=lambda: 0.0, tenant=lambda item: item[0], **fields)


def test_tenants_take_turns_however_much_one_has() -> None:
    queue = shared()
    for number in range(5000):
        queue.add(f"a{number}", 0)
    for item in ("b0", "b1", "c0"):
        queue.add(item, 1)
    assert [queue.take(2) for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_one_tenant_never_has_all_workers() -> None:
    queue = shared(most_of_one=2)
    for item in ("a0", "a1", "a2"):
        queue.add(item, 0)
    assert [queue.take(0) for _ in range(3)] == ["a0", "a1", None]
    queue.add("b0", 1)
    assert queue.take(1) == "b0"
    queue.done("a0")
    assert queue.take(1) == "a2"


def test_what_comes_back_by_itself_does_so_at_a_bounded_rate_and_events_do_not_wait() -> None:
    queue = shared()
    for number in range(1000):
        queue.add_after(f"a{number}", 100, 0)
    queue.add_after("b0", 100, 0)

    def taken(now: float) -> int:
        found = iter(lambda: queue.take(now), None)
        return sum(1 for item in found if item.startswith("a"))

    assert taken(100) == pytest.approx(DUE_A_SECOND * DUE_AT_ONCE_SECONDS, abs=1)
    assert "b0" in queue._busy
    queue.add("a999", 100)
    assert queue.take(100) == "a999"
    assert taken(101) == pytest.approx(DUE_A_SECOND, abs=1)
    taken(200)
    assert len(queue._busy) == 1001
    assert not queue._admitted


def test_one_tenants_failures_lengthen_nobody_elses_pauses() -> None:
    queue = shared(cap_seconds=30, each_seconds=0.5)
    for number in range(1000):
        queue.retry(f"a{number}", 0)
    assert max(queue.retry("a0", 0) for _ in range(20)) == 30
    assert max(queue.retry("b0", 0) for _ in range(20)) == 4


def test_a_long_queue_is_not_stuck_a_turn_that_does_not_come_is() -> None:
    queue = shared()
    for number in range(1000):
        queue.add(f"a{number}", 0)
    for now in range(1, 500):
        item = queue.take(now)
        assert item
        queue.done(item)
    assert queue.oldest(500) == 500
    assert queue.stuck(500) == 1
    assert queue.stuck(900) == 401


def test_thousands_of_tenants_that_take_turns_are_not_stuck() -> None:
    """A restart would put them into the same queue again, for ever."""
    queue: Backlog[str] = Backlog(tenant=lambda item: item)
    for number in range(1000):
        queue.add(str(number), 0)
    for now in range(1, 500):
        item = queue.take(now)
        assert item
        queue.done(item)
    assert queue.stuck(500) == 1
    assert queue.stuck(900) == 401


async def test_a_waiting_worker_gets_what_comes_and_what_falls_due() -> None:
    queue: Queue[str] = Queue()
    waiting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    assert await waiting == "a"
    queue.add_after("b", 0.01)
    assert await asyncio.wait_for(queue.get(), 10) == "b"


async def test_a_worker_that_is_cancelled_while_work_arrives_ends() -> None:
    queue: Queue[str] = Queue()
    queue.add_after("later", 60)
    waiting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0.01)
    queue.done("other")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_quick_items_have_a_queue_of_their_own() -> None:
    lanes: Lanes[str] = Lanes(quick=lambda item: item.startswith("key"))
    for item in ("deployment", "key"):
        lanes.add(item)
    assert lanes.depth() == 2
    assert (await lanes.quick.get(), await lanes.slow.get()) == ("key", "deployment")
    assert lanes.oldest() > 0
    lanes.add_after("key later", 0.01)
    assert await lanes.quick.get() == "key later"


def test_pauses_stay_short_as_nobody_tells_that_a_cause_has_gone() -> None:
    lanes: Lanes[str] = Lanes(quick=lambda item: item == "key")
    pauses = {
        item: max(queue.retry(item) for _ in range(40))
        for item, queue in (("key", lanes.quick), ("deployment", lanes.slow))
    }
    assert pauses["key"] <= 5
    assert pauses["deployment"] <= 37.5


def test_what_fails_for_hours_is_told_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    queue: Queue[Key] = Queue()
    for _ in range(1000):
        _again(queue, Key("ApiKey", "team", "a"), Retry("no quota"))
    assert len(caplog.records) == 5, "the failures 1, 4, 16, 64 and 256"
