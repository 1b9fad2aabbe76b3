"""`llm-runtime keys` and `roles`: what people type, what they see,
and what a running server makes of it."""

import asyncio
import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llm_runtime.__main__ import cli
from llm_runtime.auth.callers import Tiers
from llm_runtime.auth.keys import DatabaseKeys
from llm_runtime.contract import KeyRecord
from llm_runtime.db.database import Database
from postgres import Postgres


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'keys.db'}"
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.create()


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("KEY_PEPPER", raising=False)


def run(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code == status, result.output
    return result


def create(*words: str) -> tuple[str, str]:
    made = json.loads(run("keys", "create", *words, "--json").stdout)
    return made["id"], made["api_key"]


def listed() -> dict[str, dict[str, object]]:
    return {key["id"]: key for key in json.loads(run("keys", "list", "--json").stdout)}


async def find(url: str, key: str, pepper: str | None = None) -> KeyRecord | None:
    database = Database(url)
    async with DatabaseKeys(database, pepper) as keys:
        found = keys.find(key)
    await database.close()
    return found


def test_a_key_is_printed_alone_and_once(url: str) -> None:
    made = run("keys", "create", "web")
    [key] = made.stdout.split()
    assert key.startswith("llmk_")
    assert "once" in made.stderr
    table = run("keys", "list").stdout
    assert key not in table
    assert key.split("_")[1] in table
    assert "active" in table


def test_an_empty_list_says_how_to_make_a_key(url: str) -> None:
    assert run("keys", "list").stdout == "No keys yet: `llm-runtime keys create NAME` makes one.\n"
    assert json.loads(run("keys", "list", "--json").stdout) == []


def test_every_wish_reaches_the_server(url: str) -> None:
    words = [
        "--owner",
        "me@example.com",
        "--role",
        "gold",
        "--adapter",
        "legal",
        "--adapter",
        "sales",
        "--admin",
    ]
    words += [
        "--limit",
        "tokens-per-minute=1000",
        "--limit",
        "max-concurrent=2",
        "--expires",
        "90d",
    ]
    _, key = create("web", *words)
    record = asyncio.run(find(url, key))
    assert record
    assert (record.owner, record.tier, record.adapters, record.admin) == (
        "me@example.com", "gold", ("legal", "sales"), True,
    )  # fmt: skip
    assert (record.limits.tokens_per_minute, record.limits.max_concurrent) == (1000, 2)
    assert record.expires_at


def test_a_revoked_key_is_none(url: str) -> None:
    key_id, key = create("web")
    assert key_id in run("keys", "revoke", key_id).stdout
    assert asyncio.run(find(url, key)) is None
    assert listed()[key_id]["state"] == "revoked"
    again = run("keys", "revoke", key_id, status=1)
    assert "keys list" in again.stderr


def test_the_beginning_of_a_key_names_it_too() -> None:
    key_id, key = create("web")
    run("keys", "revoke", key)
    assert listed()[key_id]["state"] == "revoked"


def test_rotation_prints_the_new_key_and_lets_the_old_one_end() -> None:
    key_id, _ = create("web", "--owner", "me")
    rotated = run("keys", "rotate", key_id, "--overlap-hours", "2")
    assert "2 more hours" in rotated.stderr
    new = rotated.stdout.strip().split("_")[1]
    keys = listed()
    assert (keys[key_id]["state"], keys[key_id]["replaced_by"], keys[new]["owner"]) == (
        "rotated",
        new,
        "me",
    )
    assert keys[key_id]["expires_at"]
    assert "could be rotated" in run("keys", "rotate", key_id, status=1).stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--expires", "soon"], "90d"),
        (["--expires", "2001-01-01"], "past"),
        (["--limit", "tokens=5"], "tokens-per-minute"),
        (["--limit", "tokens-per-minute=-5"], "tokens-per-minute"),
        (["--limit", "tokens-per-minute"], "tokens-per-minute"),
    ],
)
def test_a_wrong_wish_is_named_and_makes_no_key(words: list[str], what: str) -> None:
    assert what in run("keys", "create", "web", *words, status=2).output
    assert not listed()


def test_a_role_that_nobody_knows_is_pointed_out() -> None:
    assert "'gold'" in run("keys", "create", "web", "--role", "gold").stderr
    run("roles", "set", "gold")
    assert "'gold'" not in run("keys", "create", "web", "--role", "gold").stderr


def test_roles_are_set_listed_and_removed(url: str) -> None:
    run(
        "roles",
        "set",
        "gold",
        "--requests-per-minute",
        "60",
        "--tokens-per-month",
        "5000000",
        "--priority",
        "3",
    )
    assert "5000000" in run("roles", "list").stdout
    [role] = json.loads(run("roles", "list", "--json").stdout)
    assert (
        role["name"],
        role["requests_per_minute"],
        role["priority"],
        role["max_concurrent"],
    ) == ("gold", 60, 3, 5)

    async def tier() -> int | None:
        database = Database(url)
        async with DatabaseKeys(database) as keys:
            found = Tiers(roles=lambda: keys.roles).find("gold").requests_per_minute
        await database.close()
        return found

    assert asyncio.run(tier()) == 60
    run("roles", "set", "gold", "--requests-per-minute", "61")
    assert asyncio.run(tier()) == 61
    run("roles", "remove", "gold")
    assert json.loads(run("roles", "list", "--json").stdout) == []
    assert "roles list" in run("roles", "remove", "gold", status=1).stderr
    run("roles", "set", "bad name!", status=2)


def test_the_pepper_of_the_environment_is_that_of_the_server(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_PEPPER", "cayenne")
    _, key = create("web")
    assert asyncio.run(find(url, key, "cayenne"))
    monkeypatch.delenv("KEY_PEPPER")
    assert "KEY_PEPPER" in run("keys", "create", "web", status=1).stderr


def test_the_address_may_be_an_option_or_in_the_configuration(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create("web")
    monkeypatch.delenv("DATABASE_URL")
    assert "web" in run("keys", "list", "--database-url", url).stdout
    file = tmp_path / "config.yaml"
    file.write_text(f"database:\n  url: {url}\n")
    assert "web" in run("keys", "list", "--config", str(file)).stdout
    assert (
        "can't be read" in run("keys", "list", "--config", str(tmp_path / "none"), status=1).stderr
    )
    monkeypatch.setenv("DATABASE_URL", "none")
    assert "there is no database" in run("keys", "list", status=1).stderr


def test_a_database_that_does_not_answer_is_said_in_a_line() -> None:
    result = run("keys", "list", "--database-url", "postgresql://nobody@127.0.0.1:1/none", status=1)
    assert "does not answer" in result.stderr
    assert "Traceback" not in result.output
    assert (
        "no database of ours"
        in run("keys", "list", "--database-url", "mysql://x/y", status=1).stderr
    )


def test_keys_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _, key = create("web")
    assert key.rpartition("_")[2] not in caplog.text
