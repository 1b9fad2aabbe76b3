"""Keys of the database: found without asking it,
in force and out of force on every replica within two seconds."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from llm_runtime import errors
from llm_runtime.auth import store as keystore
from llm_runtime.auth.callers import KeyChain, SingleKey, Tiers, authenticate
from llm_runtime.auth.keys import READ_ALL_SECONDS, DatabaseKeys
from llm_runtime.auth.store import Issued, KeyStore, NewKey
from llm_runtime.contract import Limits, Tier, format_key
from llm_runtime.db.database import Database, DatabaseAway
from llm_runtime.db.tables import api_keys, metadata, settings
from postgres import Postgres
from waiting import until

Connect = Callable[[], Awaitable[Database]]


@pytest.fixture(params=["sqlite", "postgres"])
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connect]:
    """Opens one and the same database, as each replica does."""
    server: Postgres | None = (
        request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    )
    url = server.create() if server else f"sqlite:///{tmp_path / 'keys.db'}"
    async with AsyncExitStack() as stack:

        async def opened() -> Database:
            database = Database(url)
            stack.push_async_callback(database.close)
            async with database.begin() as connection:
                await connection.run_sync(metadata.create_all)
            return database

        yield opened


@pytest.fixture
async def database(connect: Connect) -> Database:
    return await connect()


@asynccontextmanager
async def lite(folder: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{folder / 'keys.db'}")
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


async def execute(database: Database, statement: Any) -> None:
    async with database.begin() as connection:
        await connection.execute(statement)


async def test_a_new_key_opens_and_says_whose_it_is(database: Database) -> None:
    wish = NewKey(
        "web", "web@example.com", "gold", Limits(tokens_per_minute=7), ("legal",), admin=True
    )
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(wish)
        await keys.poll()
        record = keys.find(issued.key)
    assert record
    assert (record.id, record.name, record.owner, record.tier) == (
        issued.id,
        "web",
        "web@example.com",
        "gold",
    )
    assert (record.limits.tokens_per_minute, record.adapters, record.admin) == (7, ("legal",), True)


async def test_a_key_revoked_on_one_replica_stops_on_all_within_two_seconds(
    connect: Connect,
) -> None:
    async with DatabaseKeys(await connect()) as one, DatabaseKeys(await connect()) as other:
        issued = await one.store.create(NewKey("web"))
        await until(lambda: one.find(issued.key) and other.find(issued.key), 2)
        await one.store.revoke(issued.id)
        await until(lambda: not one.find(issued.key) and not other.find(issued.key), 2)
        with pytest.raises(errors.NotFound):
            await other.store.revoke(issued.id)


async def test_changed_limits_of_a_role_reach_known_keys_within_two_seconds(
    connect: Connect,
) -> None:
    async with DatabaseKeys(await connect()) as one, DatabaseKeys(await connect()) as other:
        configured = Tier(name="gold", requests_per_minute=1)
        tiers = Tiers([configured], "standard", lambda: other.roles)
        issued = await one.store.create(NewKey("web", role="gold", limits=Limits(max_concurrent=2)))
        await other.poll()

        def caller() -> tuple[int | None, int | None]:
            record = other.find(issued.key)
            assert record
            tier = tiers.caller(record).tier
            return tier.requests_per_minute, tier.max_concurrent

        assert caller() == (1, 2)
        await one.store.set_role(Tier(name="gold", requests_per_minute=5))
        await until(lambda: caller() == (5, 2), 2)
        await one.store.set_role(Tier(name="gold"))
        await other.poll()
        assert caller() == (None, 2)
        await one.store.remove_role("gold")
        await other.poll()
        assert caller() == (1, 2)
        with pytest.raises(errors.NotFound):
            await one.store.remove_role("gold")


async def test_rotation_overlaps_and_then_ends_the_old_key(database: Database) -> None:
    now = datetime.now(UTC)
    store = KeyStore(database, None, clock=lambda: now)
    old = await store.create(NewKey("web", "me", "gold", Limits(priority=3), ("legal",)))
    new = await store.rotate(old.id, timedelta(hours=24))
    async with DatabaseKeys(database) as keys:
        for issued in (old, new):
            assert authenticate(keys, [issued.key], now + timedelta(hours=23))
        assert authenticate(keys, [new.key], now + timedelta(days=9999)).limits.priority == 3
        with pytest.raises(errors.Forbidden) as refused:
            authenticate(keys, [old.key], now + timedelta(hours=25))
        assert refused.value.code == "key_expired"
    assert [key.replaced_by for key in await store.stored() if key.record.id == old.id] == [new.id]
    for again in (old.id, "nobody"):
        with pytest.raises(errors.NotFound):
            await store.rotate(again, timedelta(hours=24))


async def test_a_key_with_an_end_gets_a_successor_of_the_same_lifetime(database: Database) -> None:
    now = datetime.now(UTC)
    store = KeyStore(database, None, clock=lambda: now)
    old = await store.create(NewKey("web", expires_at=now + timedelta(days=1)))
    new = await store.rotate(old.id, timedelta(days=30))
    ends = {key.record.id: key.record.expires_at for key in await store.stored()}
    assert ends[old.id] == now + timedelta(days=1), "the overlap prolongs nothing"
    left = ends[new.id]
    assert left
    assert abs(left - now - timedelta(days=1)) < timedelta(seconds=10)


async def test_two_rotations_at_once_make_one_successor(connect: Connect) -> None:
    stores = [KeyStore(await connect(), None) for _ in range(2)]
    old = await stores[0].create(NewKey("web"))
    done = await asyncio.gather(
        *(store.rotate(old.id, timedelta(0)) for store in stores), return_exceptions=True
    )
    assert sum(isinstance(answer, Issued) for answer in done) == 1
    assert len(await stores[0].stored()) == 2


async def test_replicas_that_start_together_agree_on_one_salt(connect: Connect) -> None:
    databases = [await connect() for _ in range(4)]
    stores = [KeyStore(database, None) for database in databases]
    issued = await asyncio.gather(
        *(store.create(NewKey(f"k{number}")) for number, store in enumerate(stores))
    )
    async with DatabaseKeys(databases[0]) as keys:
        assert all(keys.find(key.key) for key in issued)


async def test_what_is_in_the_database_opens_nothing(database: Database) -> None:
    issued = await KeyStore(database, "pepper-from-the-environment").create(NewKey("web"))
    async with database.begin() as connection:
        kept = str((await connection.execute(select(api_keys))).all())
        kept += str((await connection.execute(select(settings))).all())
    assert issued.key not in kept
    assert issued.key.rpartition("_")[2] not in kept
    assert "pepper-from-the-environment" not in kept


@pytest.mark.parametrize(
    ("made_with", "read_with"), [("one", "other"), ("one", None), (None, "other")]
)
async def test_a_pepper_that_is_not_that_of_the_keys_is_said_at_the_start(
    database: Database, made_with: str | None, read_with: str | None
) -> None:
    issued = await KeyStore(database, made_with).create(NewKey("web"))
    with pytest.raises(errors.ConfigInvalid, match="KEY_PEPPER"):
        await DatabaseKeys(database, read_with).__aenter__()
    with pytest.raises(errors.ConfigInvalid, match="KEY_PEPPER"):
        await KeyStore(database, read_with).create(NewKey("web"))
    await KeyStore(database, made_with).revoke(issued.id)
    new = await KeyStore(database, read_with).create(NewKey("web"))
    async with DatabaseKeys(database, read_with) as keys:
        assert keys.find(new.key)


async def test_a_change_that_commits_late_is_still_noticed(connect: Connect) -> None:
    database = await connect()
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        # Stamped twenty seconds ago, seen only now.
        late = datetime.now(UTC) - timedelta(seconds=20)
        await execute(database, update(api_keys).values(revoked_at=late, updated_at=late))
        await keys.poll()
        assert keys.find(issued.key) is None


async def test_a_clock_that_was_put_back_hides_no_change(database: Database) -> None:
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        keys._read_at += timedelta(hours=1)  # The last look was an hour later than now.
        await keys.store.revoke(issued.id)
        await keys.poll()
        assert keys.find(issued.key) is None


async def test_a_row_deleted_by_hand_stops_the_key(database: Database) -> None:
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        assert keys.find(issued.key)
        await execute(database, api_keys.delete())
        await until(lambda: keys.find(issued.key) is None)


async def test_a_change_with_a_wrong_stamp_is_noticed_when_all_is_read_again(
    tmp_path: Path,
) -> None:
    now = [0.0]
    async with lite(tmp_path) as database, DatabaseKeys(database, clock=lambda: now[0]) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        wrong = datetime(2001, 1, 1, tzinfo=UTC)
        await execute(database, update(api_keys).values(name="renamed", updated_at=wrong))
        await keys.poll()
        assert keys.find(issued.key).name == "web"  # type: ignore[union-attr]
        now[0] += READ_ALL_SECONDS + 1
        await keys.poll()
        assert keys.find(issued.key).name == "renamed"  # type: ignore[union-attr]


async def test_known_keys_stay_in_force_while_the_database_is_away(
    postgres_server: Postgres,
) -> None:
    url = postgres_server.create()
    name = url.rpartition("/")[2]
    database = Database(url)
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        # Nobody can connect any more, and whoever is connected is thrown out.
        postgres_server.psql("postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres_server.psql(
            "postgres",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname='{name}'",
        )
        with pytest.raises((DatabaseAway, DBAPIError)):
            await keys.poll()
        assert keys.find(issued.key)
        postgres_server.psql("postgres", f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await keys.store.revoke(issued.id)
        await until(lambda: keys.find(issued.key) is None)
    await database.close()


async def test_a_start_without_the_database_is_503_until_it_answers(tmp_path: Path) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    async with DatabaseKeys(away) as keys:
        with pytest.raises(errors.ServiceUnavailable):
            keys.find(format_key("web", "x" * 43))
        assert KeyChain(SingleKey("s3cret"), keys).find("s3cret")
    await away.close()


async def test_an_unchanged_key_stays_the_same_object(database: Database) -> None:
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        first = keys.find(issued.key)
        await keys.poll()
        assert first is keys.find(issued.key)


async def test_two_keys_may_have_one_name(database: Database) -> None:
    async with DatabaseKeys(database) as keys:
        first, second = [await keys.store.create(NewKey("web")) for _ in range(2)]
        await keys.poll()
        assert first.id != second.id
        assert keys.find(first.key) is not keys.find(second.key)
        await keys.store.revoke(first.id)
        await keys.poll()
        assert (keys.find(first.key), bool(keys.find(second.key))) == (None, True)


@pytest.mark.parametrize(
    "key",
    [
        "llmk_' OR '1'='1_x",
        "llmk_x'; DROP TABLE api_keys; --_x",
        "llmk__",
        "_",
        "llmk_" + "\0" * 9 + "_x",
        "llmk_web_" + "x" * 1_000_000,
        "\xff\xfe",
    ],
)
async def test_hostile_keys_are_just_unknown(tmp_path: Path, key: str) -> None:
    async with lite(tmp_path) as database, DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("'; DROP TABLE api_keys; --"))
        await keys.poll()
        assert keys.find(key) is None
        with pytest.raises(errors.NotFound):
            await keys.store.revoke(key.replace("\0", "") + "'--")
        assert keys.find(issued.key)


async def test_the_same_work_is_done_for_every_wrong_key(tmp_path: Path) -> None:
    async with lite(tmp_path) as database, DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        known = format_key(issued.id, "x" * 43)
        unknown = format_key("y" * 12, "x" * 43)
        assert calls(keys, known) == calls(keys, unknown) == calls(keys, issued.key)
        assert "compare_digest" in calls(keys, unknown)


def calls(keys: DatabaseKeys, key: str) -> list[str]:
    """What runs during a look-up, by name."""
    seen: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            seen.append(argument.__name__)
        elif event == "call":
            seen.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        keys.find(key)
    finally:
        sys.setprofile(None)
    return seen


async def test_keys_are_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with lite(tmp_path) as database, DatabaseKeys(database, "the-pepper") as keys:
            issued = await keys.store.create(NewKey("web"))
            new = await keys.store.rotate(issued.id, timedelta(hours=1))
            await keys.poll()
            keys.find(issued.key)
            await keys.store.revoke(new.id)
    for secret in (issued.key, new.key, "the-pepper"):
        assert secret.rpartition("_")[2] not in caplog.text


async def test_a_key_that_was_broken_by_hand_is_refused_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with lite(tmp_path) as database, DatabaseKeys(database) as keys:
        good, bad = [await keys.store.create(NewKey(name)) for name in ("good", "bad")]
        broken = (
            update(api_keys).where(api_keys.c.id == bad.id).values(limits={"tokens_per_minute": -1})
        )
        await execute(database, broken)
        await keys.poll()
        assert authenticate(keys, [good.key], datetime.now(UTC))
        with pytest.raises(errors.Forbidden):
            authenticate(keys, [bad.key], datetime.now(UTC))
    assert bad.id in caplog.text


async def test_a_table_that_is_missing_later_leaves_the_keys_in_force(connect: Connect) -> None:
    database = await connect()
    async with DatabaseKeys(database) as keys:
        issued = await keys.store.create(NewKey("web"))
        await keys.poll()
        await execute(database, text("DROP TABLE roles"))
        await asyncio.sleep(0.7)
        assert keys.find(issued.key)


async def test_a_thousand_keys_are_loaded_by_a_few_statements(connect: Connect) -> None:
    database = await connect()
    statements = list[str]()
    await execute(database, insert(api_keys).values(many(1000)))
    event.listen(
        database._engine.sync_engine,
        "before_cursor_execute",
        lambda *passed: statements.append(passed[2]),
    )
    async with DatabaseKeys(database) as keys:
        assert len(keys.records()) == 1000
    assert 0 < len(statements) < 10


def many(count: int) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    same: dict[str, Any] = {
        "digest": "0" * 64,
        "name": "web",
        "owner": "",
        "role": "",
        "limits": {},
        "adapters": [],
    }
    return [
        {**same, "id": f"k{n}", "admin": False, "created_at": now, "updated_at": now}
        for n in range(count)
    ]


def test_a_random_part_has_the_full_length() -> None:
    assert len(keystore._random(43, "ab")) == 43
