"""Concurrent places: their order, and what is left of callers who give up."""

import asyncio
import random

import pytest

from llm_runtime.limits.slots import MAX_WAITING, NoPlace, Slots


async def enter(slots: Slots, name: int, order: list[int]) -> None:
    await slots.enter(10)
    order.append(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places_go_to_those_who_wait_longest() -> None:
    slots = Slots(2)
    order = list[int]()
    tasks = [asyncio.create_task(enter(slots, name, order)) for name in range(6)]
    await settle()
    assert order == [0, 1]
    for expected in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        slots.leave()
        await settle()
        assert order == expected
    assert slots.running == 2
    slots.leave()
    await asyncio.gather(*tasks)


async def test_nobody_overtakes_whoever_was_handed_a_place_but_has_not_woken() -> None:
    slots = Slots(1)
    order = list[int]()
    await slots.enter(10)
    waiting = asyncio.create_task(enter(slots, 1, order))
    await settle()
    slots.leave()
    late = asyncio.create_task(enter(slots, 2, order))
    await settle()
    assert order == [1]
    slots.leave()
    await asyncio.gather(waiting, late)
    assert order == [1, 2]


async def test_the_hundred_and_first_who_waits_is_refused_at_once() -> None:
    slots = Slots(1)
    order = list[int]()
    await slots.enter(10)
    tasks = [asyncio.create_task(enter(slots, name, order)) for name in range(MAX_WAITING)]
    await settle()
    with pytest.raises(NoPlace):
        await slots.enter(10)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (slots.running, slots.waiting) == (1, 0)


async def test_whoever_waited_too_long_leaves_no_trace() -> None:
    slots = Slots(1)
    await slots.enter(10)
    with pytest.raises(NoPlace):
        await slots.enter(0.01)
    assert (slots.running, slots.waiting) == (1, 0)
    with pytest.raises(NoPlace):
        await slots.enter(0)
    slots.leave()
    assert slots.idle


async def test_a_place_handed_to_somebody_cancelled_at_that_moment_goes_on() -> None:
    slots = Slots(1)
    order = list[int]()
    await slots.enter(10)
    first = asyncio.create_task(enter(slots, 1, order))
    second = asyncio.create_task(enter(slots, 2, order))
    await settle()
    slots.leave()  # Hands the place to the first,
    first.cancel()  # who is cancelled before it wakes.
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.wait_for(second, 10)
    assert order == [2]
    assert (slots.running, slots.waiting) == (1, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_any_mix_of_arrivals_ends_and_cancellations_leaks_no_place(seed: int) -> None:
    chance = random.Random(seed)
    slots = Slots(3)
    peak = 0

    async def use() -> None:
        nonlocal peak
        await slots.enter(chance.choice([0.001, 10]))
        peak = max(peak, slots.running)
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            slots.leave()

    tasks = list[asyncio.Task[None]]()
    for _ in range(80):
        tasks.append(asyncio.create_task(use()))
        if chance.random() < 0.5:
            chance.choice(tasks).cancel()
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert slots.idle
    assert peak <= 3


async def test_a_larger_limit_lets_in_who_waits_and_a_smaller_one_takes_no_place_away() -> None:
    slots = Slots(1)
    order = list[int]()
    tasks = [asyncio.create_task(enter(slots, name, order)) for name in range(4)]
    await settle()
    slots.resize(3)
    await settle()
    assert order == [0, 1, 2]
    slots.resize(1)
    slots.leave()
    slots.leave()
    await settle()
    assert order == [0, 1, 2]
    slots.leave()
    await asyncio.gather(*tasks)
    slots.resize(None)
    for _ in range(50):
        await slots.enter(10)


async def test_retry_after_follows_the_pace_of_late() -> None:
    slots = Slots(2)
    for _ in range(60):
        await slots.enter(10)
        slots.leave(8.0)
    assert 3.9 < slots.retry_after_seconds() < 4.1
    for _ in range(60):
        await slots.enter(10)
        slots.leave(
            -3.0
        )  # A clock that goes back makes nobody wait longer, or shorter than a second.
    assert slots.retry_after_seconds() == 1.0
