"""Conversations: whose they are, how long they live,
and what happens when two turns or two replicas meet."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llm_runtime.contract import SessionsConfig
from llm_runtime.db.database import Database
from llm_runtime.db.migrate import upgrade
from llm_runtime.sessions import Message, Sessions
from llm_runtime.sessions.conversations import trimmed


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def turn(number: int) -> list[Message]:
    return [
        {"role": "user", "content": f"q{number}"},
        {"role": "assistant", "content": f"a{number}"},
    ]


async def test_a_conversation_is_continued_without_a_database() -> None:
    async with Sessions(SessionsConfig()) as sessions:
        assert await sessions.history("web", "s") == []
        await sessions.append("web", "s", turn(1))
        await sessions.append("web", "s", turn(2))
        assert await sessions.history("web", "s") == [*turn(1), *turn(2)]


async def test_two_tenants_never_see_each_other(database: Database) -> None:
    async with Sessions(SessionsConfig(), database) as sessions:
        await sessions.append("web", "s", turn(1))
        assert await sessions.history("other", "s") == []
        assert await sessions.history("we", "bs") == []


async def test_a_conversation_ends_some_time_after_its_last_message(database: Database) -> None:
    for store in (None, database):
        clock = Clock()
        async with Sessions(SessionsConfig(ttl_seconds=100), store, clock) as sessions:
            await sessions.append("web", "s", turn(1))
            clock.now += timedelta(seconds=90)
            await sessions.append("web", "s", turn(2))
            clock.now += timedelta(seconds=90)
            assert await sessions.history("web", "s") == [*turn(1), *turn(2)]
            clock.now += timedelta(seconds=11)
            assert await sessions.history("web", "s") == []
            await sessions.append("web", "s", turn(3))
            assert await sessions.history("web", "s") == turn(3)


def test_oldest_pairs_go_and_the_system_message_stays() -> None:
    system = {"role": "system", "content": "be brief"}
    talk = [system, *turn(1), *turn(2), *turn(3)]
    assert trimmed(talk, 5) == [system, *turn(2), *turn(3)]
    assert trimmed(talk, 4) == [system, *turn(3)]
    assert trimmed([*turn(1), *turn(2)], 3) == turn(2)


async def test_the_session_used_least_recently_makes_room() -> None:
    async with Sessions(SessionsConfig(max_sessions=2)) as sessions:
        for name in ("a", "b", "c"):
            await sessions.append("web", name, turn(1))
        assert await sessions.history("web", "a") == []
        assert await sessions.history("web", "c") == turn(1)


async def test_replicas_share_conversations_and_a_restart_keeps_them(database: Database) -> None:
    async with (
        Sessions(SessionsConfig(), database) as one,
        Sessions(SessionsConfig(), database) as other,
    ):
        await one.append("web", "s", turn(1))
        await other.append("web", "s", turn(2))
        assert await one.history("web", "s") == [*turn(1), *turn(2)]
    async with Sessions(SessionsConfig(), database) as restarted:
        assert await restarted.history("web", "s") == [*turn(1), *turn(2)]


async def test_turns_at_once_all_end_up_in_the_history(database: Database) -> None:
    replicas = [Sessions(SessionsConfig(), database) for _ in range(3)]
    await asyncio.gather(
        *(replicas[number % 3].append("web", "s", turn(number)) for number in range(9))
    )
    history = await replicas[0].history("web", "s")
    assert sorted(message["content"] for message in history) == sorted(
        message["content"] for number in range(9) for message in turn(number)
    )


async def test_memory_carries_on_while_the_database_is_away_and_catches_up(tmp_path: Path) -> None:
    file = tmp_path / "away.db"
    database = Database(f"sqlite:///{file}")
    database.prepared = False
    async with Sessions(SessionsConfig(), database) as sessions:
        await sessions.append("web", "s", turn(1))
        assert await sessions.history("web", "s") == turn(1)
        await upgrade(database)
        database.prepared = True
        await sessions.append("web", "s", turn(2))
        async with Sessions(SessionsConfig(), database) as other:
            assert await other.history("web", "s") == [*turn(1), *turn(2)]
    await database.close()
