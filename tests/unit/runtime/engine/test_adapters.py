"""Who is in memory, who uses it, who makes room."""

import pytest

from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.errors import NotFound, ServiceUnavailable


def loaded(limit: int, *names: str) -> AdapterTable:
    table = AdapterTable(limit)
    for name in names:
        table.load(name)
    return table


def test_the_base_is_always_there() -> None:
    table = AdapterTable(1)
    assert table.acquire("") == ""
    assert table.release("") == ()


def test_an_unknown_adapter_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(NotFound, match=r"sql.*legal, poet"):
        loaded(2, "poet", "legal").acquire("sql")
    with pytest.raises(NotFound, match="none"):
        AdapterTable(1).drop("sql")


def test_who_was_not_used_for_longest_makes_room() -> None:
    table = loaded(3, "a", "b", "c")
    keys = {name: table.acquire(name) for name in ("a", "b", "c")}
    for name in ("b", "a", "c"):
        table.release(keys[name])
    table.release(table.acquire("a"))
    assert table.load("d").leaving == (keys["b"],)
    assert table.names == ("a", "c", "d")


def test_what_is_in_use_makes_no_room() -> None:
    table = loaded(2, "a", "b")
    key = table.acquire("a")
    assert table.load("c").leaving[0].startswith("b@")
    table.acquire("c")
    with pytest.raises(ServiceUnavailable, match="maxAdapters"):
        table.load("d")
    assert table.names == ("a", "c")
    table.release(key)
    assert table.load("d").leaving == (key,)


def test_a_replaced_version_stays_until_its_last_user_leaves() -> None:
    table = loaded(3, "a")
    first = table.acquire("a")
    second = table.acquire("a")
    replacement = table.load("a")
    assert replacement.leaving == ()
    assert table.acquire("a") == replacement.key != first
    assert table.release(first) == ()
    assert table.release(second) == (first,)
    assert table.names == ("a",)


def test_a_replaced_version_without_users_leaves_first() -> None:
    table = loaded(2, "a", "b")
    old = table.acquire("b")
    table.release(old)
    assert table.load("b").leaving == (old,)
    assert set(table.names) == {"a", "b"}


def test_versions_in_use_count_against_the_limit() -> None:
    table = loaded(1, "a")
    table.acquire("a")
    with pytest.raises(ServiceUnavailable):
        table.load("a")


def test_a_dropped_adapter_takes_no_new_users_and_leaves_with_its_last() -> None:
    table = loaded(2, "a", "b")
    key = table.acquire("a")
    assert table.drop("a") == ()
    with pytest.raises(NotFound):
        table.acquire("a")
    assert table.release(key) == (key,)
    assert len(table.drop("b")) == 1
    assert table.names == ()


def test_a_name_that_comes_again_is_another_version() -> None:
    table = loaded(3, "a")
    old = table.acquire("a")
    table.drop("a")
    assert table.load("a").key != old
    assert table.release(old) == (old,)
    assert table.names == ("a",)
