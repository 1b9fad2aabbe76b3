"""`llm-runtime dataset`: which stored requests become records of an evaluation dataset."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llm_runtime.__main__ import cli
from llm_runtime.commands.recorded import Chosen, choose
from llm_runtime.contract import DatabaseConfig
from llm_runtime.filters.finder import Finder
from llm_runtime.metrics import Metrics
from llm_runtime.usage import Outcome
from llm_runtime.usage.writer import DatabaseUsage
from usage_rows import AT, empty, row

STORING = DatabaseConfig(flush_seconds=0.02, store_prompts=True)
MESSAGES = [{"role": "user", "content": "Which plan is best?"}]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with requests of every kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    rows: list[dict[str, Any]] = [
        {"prompt": "One and one?", "completion": "Three"},
        {"prompt": "One and one?", "completion": "Two"},
        {"prompt": json.dumps(MESSAGES), "completion": "The large one."},
        {"prompt": "42", "completion": "is the answer"},
        {"prompt": "My mail is jo@example.com.", "completion": "Thanks"},
        {"prompt": "What is your mail?", "completion": "help@example.com"},
        {"prompt": "[1, 2, 3]", "completion": "of tokens"},
        {"prompt": "Cut", "completion": "off", "finish_reasons": ("length",)},
        {"prompt": "Failed", "completion": "x", "outcome": Outcome.FAILED},
        {"prompt": "Adapter", "completion": "x", "adapter": "legal"},
        {"prompt": "Other", "completion": "x", "model": "other"},
        {"prompt": "Older", "completion": "version", "model_version": "2"},
        {"prompt": None, "completion": None},
    ]

    async def fill() -> None:
        database = await empty(url)
        async with DatabaseUsage(database, STORING, Metrics()) as usage:
            for number, fields in enumerate(rows):
                usage.write(row(at=AT + timedelta(hours=number), request_id=f"r{number}", **fields))
        await database.close()

    asyncio.run(fill())
    return url


def chosen(url: str, version: str = "3", limit: int = 100) -> Chosen:
    async def ask() -> Chosen:
        database = await empty(url)
        try:
            return await choose(database, Finder(), "bot", version=version, since=None, limit=limit)
        finally:
            await database.close()

    return asyncio.run(ask())


def test_whole_answers_of_the_model_are_taken_and_the_newest_of_equal_questions(
    recorded: str,
) -> None:
    found = chosen(recorded)
    assert {
        json.dumps(each["inputs"]): each["expectations"]["expected_response"]
        for each in found.records
    } == {
        json.dumps({"messages": MESSAGES}): "The large one.",
        json.dumps({"prompt": "One and one?"}): "Two",
        json.dumps({"prompt": "42"}): "is the answer",
    }
    assert found.reasons == {
        "with personal data": 2,
        "asked more than once": 1,
        "that can't be asked again": 1,
    }


def test_versions_and_the_number_are_as_asked(recorded: str) -> None:
    assert [each["inputs"] for each in chosen(recorded, version="2").records] == [
        {"prompt": "Older"}
    ]
    assert len(chosen(recorded, version="").records) == 4
    assert len(chosen(recorded, limit=1).records) == 1


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["dataset", "golden", *words])


def test_a_dry_run_tells_what_would_be_left_out_and_asks_no_server(recorded: str) -> None:
    told = run("--model", "bot", "--version", "3", "--database-url", recorded, "--dry-run").output
    assert (
        "3 records of 7 stored requests; left out: 1 asked more than once, 1 that can't be asked"
        " again" in told
    )


def test_what_is_missing_is_told(recorded: str) -> None:
    assert "--tracking-uri" in run("--model", "bot", "--database-url", recorded).output
    nothing = run("--model", "nobody", "--database-url", recorded, "--dry-run")
    assert nothing.exit_code == 1
    assert "storePrompts" in nothing.output
