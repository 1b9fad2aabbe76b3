"""Whose turn it is in the queue."""

from collections import Counter

from llm_runtime.engine.sequence import Sequence
from llm_runtime.engine.waiting import MAX_TENANTS, WaitingQueue
from llm_runtime.request import GenerationRequest, Sampling
from unit.runtime.engine.fakes import CharacterVocabulary


def sequence(name: str, tenant: str = "", priority: int = 0) -> Sequence:
    request = GenerationRequest(
        name, (97,), Sampling(max_tokens=1), priority=priority, tenant=tenant
    )
    return Sequence(request, CharacterVocabulary())


def order(*waiting: Sequence, running: Counter[str] | None = None) -> str:
    queue = WaitingQueue()
    for each in waiting:
        queue.add(each)
    names = ""
    while first := queue.first(running or Counter()):
        queue.pop(first)
        names += first.request.id
    assert len(queue) == 0
    return names


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    assert order(sequence("a"), sequence("b"), sequence("c")) == "abc"


def test_a_tenant_with_many_requests_does_not_hold_up_another() -> None:
    assert (
        order(
            *(sequence(name, "big") for name in "abcd"),
            sequence("x", "small"),
            sequence("y", "small"),
        )
        == "axbycd"
    )


def test_higher_priorities_go_first() -> None:
    assert (
        order(
            sequence("a"),
            sequence("b", priority=5),
            sequence("c", priority=-1),
            sequence("d", priority=5),
        )
        == "bdac"
    )


def test_who_runs_least_is_next() -> None:
    waiting = [sequence("a", "big"), sequence("b", "big"), sequence("x", "small")]
    assert order(*waiting, running=Counter(big=3)) == "xab"


def test_removed_ones_are_not_served_and_not_counted() -> None:
    queue = WaitingQueue()
    gone = sequence("a")
    stays = sequence("b")
    queue.add(gone)
    queue.add(stays)
    queue.remove({gone, sequence("stranger")})
    assert (len(queue), list(queue), queue.first(Counter())) == (1, [stays], stays)


def test_tenants_without_end_are_not_remembered_without_end() -> None:
    queue = WaitingQueue()
    for number in range(3 * MAX_TENANTS):
        queue.add(sequence("a", f"tenant {number}"))
        first = queue.first(Counter())
        assert first
        queue.pop(first)
    assert len(queue._turns) == MAX_TENANTS
