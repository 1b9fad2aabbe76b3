"""`llm-runtime db` and `llm-runtime usage`, as somebody at a terminal uses them."""

import asyncio
import json
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import pytest
from typer.testing import CliRunner, Result

from llm_runtime.__main__ import cli
from llm_runtime.commands.usage import By, _print_totals
from llm_runtime.db import migrate
from llm_runtime.metrics import Metrics
from llm_runtime.usage.report import Period, Total
from llm_runtime.usage.writer import DatabaseUsage
from usage_rows import AT, QUICK, empty, row


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def used(database_url: str) -> str:
    """A database with the usage of two keys on two days."""

    async def fill() -> None:
        database = await empty(database_url)
        async with DatabaseUsage(database, QUICK, Metrics()) as usage:
            for hour in range(30):
                usage.write(row(at=AT + timedelta(hours=hour), request_id=f"r{hour}"))
            usage.write(row(key_id="ci", key_name="default/ci", adapter="legal", cached=True))
        await database.close()

    asyncio.run(fill())
    return database_url


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_upgrade_and_inspect_need_no_model(database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"database: {{url: '{database_url}'}}\n")
    assert "it was empty" in run("db", "upgrade", "--config", str(config)).output
    shown = run("db", "inspect", "--config", str(config)).output
    assert "inference_log" in shown
    assert "(current)" in shown


def test_the_address_comes_from_the_option_then_the_environment_then_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("database: {url: 'sqlite:///file.db'}\n")
    words = ("db", "upgrade", "--config", str(config))
    run(*words)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///environment.db")
    run(*words)
    run(*words, "--database-url", "sqlite:///option.db")
    assert {file.stem for file in tmp_path.glob("*.db")} == {"file", "environment", "option"}


def test_a_database_that_does_not_answer_is_one_line_without_its_password() -> None:
    result = run("db", "inspect", "--database-url", "postgresql://user:secret@127.0.0.1:1/x")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "postgresql://127.0.0.1:1/x does not answer" in result.stderr
    assert "secret" not in result.output


def test_no_database_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "none")
    result = run("usage")
    assert result.exit_code == 1
    assert "there is no database" in result.stderr


@pytest.mark.parametrize("words", [(), ("--key", "web", "--latest", "2")])
def test_usage_of_a_database_without_tables_is_one_line(
    database_url: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "runtime.db").touch()
    for _ in range(2):
        result = run("usage", *words, "--database-url", database_url)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert (
            "holds no tables of llm-runtime: check its address, or run `llm-runtime db upgrade`"
            in result.stderr
        )


@pytest.mark.parametrize("words", [("usage",), ("usage", "--json"), ("db", "inspect")])
def test_who_only_looks_makes_no_file_and_no_folder(tmp_path: Path, words: tuple[str, ...]) -> None:
    for place in ("sqlite:///llm-runtime.db", "sqlite:///none/x.db"):
        result = run(*words, "--database-url", place)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert (
            f"there is no {place}: check its address, or run `llm-runtime db upgrade`"
            in result.stderr
        )
    assert not [*tmp_path.iterdir()]


def test_usage_of_an_older_database_says_what_to_run(
    used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "head", lambda: "9999")
    result = run("usage", "--database-url", used)
    assert result.exit_code == 1
    assert "older than 9999: check its address, or run `llm-runtime db upgrade`" in result.stderr


def test_usage_by_day_is_a_table_with_sums_and_a_plot(used: str) -> None:
    shown = run("usage", "--month", "2026-11", "--database-url", used).output
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert lines["2026-11-21"][1:6] == ["13", "0", "1", "91", "65"]
    assert lines["2026-11-22"][1:6] == ["18", "0", "0", "126", "90"]
    assert lines["all"][1:6] == ["31", "0", "1", "217", "155"]
    assert "█" in shown


def test_usage_of_a_day_is_asked_for_by_its_name(
    used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Today(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2026, 11, 22, 23, 59, tzinfo=tz)

    monkeypatch.setattr("llm_runtime.commands.usage.datetime", Today)
    for words, requests in (
        (("today",), 18),
        (("yesterday",), 13),
        (("2026-11-21",), 13),
        (("--since", "yesterday"), 31),
        (("--since", "yesterday", "--until", "yesterday"), 13),
    ):
        days = json.loads(run("usage", *words, "--json", "--database-url", used).output)
        assert sum(day["requests"] for day in days) == requests


def test_usage_by_key_and_model_names_both(used: str) -> None:
    shown = run("usage", "--by", "key", "--month", "2026-11", "--database-url", used).output
    assert "default/web" in shown
    assert "default/ci" in shown
    shown = run(
        "usage",
        "--by",
        "model",
        "--since",
        "2026-11-21",
        "--until",
        "2026-11-22",
        "--database-url",
        used,
    ).output
    assert "bot:legal" in shown


def test_usage_for_programs_is_json(used: str) -> None:
    words = ("usage", "--by", "key", "--month", "2026-11", "--json", "--database-url", used)
    web, ci = json.loads(run(*words).output)
    assert (web["group"], web["requests"], web["prompt_tokens"]) == ("web", 30, 210)
    assert (ci["group"], ci["cached"]) == ("ci", 1)


def test_the_last_requests_of_a_key_are_shown_newest_first(used: str) -> None:
    shown = run("usage", "--key", "web", "--latest", "2", "--json", "--database-url", used).output
    assert [request["request_id"] for request in json.loads(shown)] == ["r29", "r28"]


def test_a_month_without_usage_is_no_empty_table(used: str) -> None:
    shown = run("usage", "--month", "2020-02", "--database-url", used).output
    assert shown == "No usage, 2020-02-01 to 2020-02-29 (UTC).\n"
    assert (
        run("usage", "2020-02-29", "--database-url", used).output == "No usage, 2020-02-29 (UTC).\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--month", "11"),
        ("--latest", "3"),
        ("--month", "2026-11", "--since", "2026-11-02"),
        ("today", "--month", "2026-11"),
        ("yesterday", "--until", "2026-11-02"),
        ("tomorrow",),
        ("--since", "11"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: tuple[str, ...]) -> None:
    assert run("usage", *words).exit_code == 2


AT_NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
LONG = "team-a/continuous-integration"


@pytest.mark.parametrize(
    ("by", "group", "name", "width", "shown"),
    [
        (By.KEY, "0a1b2c3d4e5f", LONG, 80, ["0a1b2c3d4e5f", LONG, "12.3 M", " 11-28"]),
        (By.KEY, "0a1b2c3d4e5f", LONG, 120, [f"0a1b2c3d4e5f  {LONG}", "12,345,678", "11-28 12:00"]),
        (
            By.MODEL,
            "support-bot:legal-german",
            "",
            80,
            ["support-bot:legal-german ", "12.3 M", " 11-28"],
        ),
        (By.MODEL, "m" * 90, "", 80, ["m" * 90]),
        (By.DAY, "2026-11-28", "", 80, ["2026-11-28", "12,345,678", "11-28 12:00"]),
    ],
)
def test_the_usage_table_cuts_and_parts_no_word(
    by: By,
    group: str,
    name: str,
    width: int,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    used = Total(group, name, 123_456, 12, 1_234, 12_345_678, 2_345_678, AT_NOON)
    _print_totals(by, Period(date(2026, 11, 1), date(2026, 11, 30)), [used, used])
    printed = capsys.readouterr().out
    assert "…" not in printed
    for words in ("requests", "failed", "cached", "prompts", "answers", "last", *shown):
        assert words in printed
    if len(group) < 80:
        assert max(map(len, printed.splitlines())) <= width


def test_a_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        asked = {
            "_LLM_RUNTIME_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        return CliRunner().invoke(cli, (), prog_name="llm-runtime", env=asked).output.split()

    assert completed("llm-runtime us") == ["usage"]
    assert "--since" in completed("llm-runtime usage --")
    assert completed("llm-runtime usage --by ") == ["day", "key", "model"]
