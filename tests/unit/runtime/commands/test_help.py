"""What `llm-runtime` says of itself."""

import re
from importlib import metadata

import pytest
from typer.testing import CliRunner

from llm_runtime.__main__ import cli


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert (result.exit_code, result.output) == (
        0,
        f"llm-runtime {metadata.version('llm-operator')}\n",
    )


def test_commands_come_in_the_order_of_their_use_and_their_summaries_are_whole_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(cli, ["--help"]).output.partition("Commands")[2]
    summaries = dict(re.findall(r"^│ (\w+) +(\S.*?) *│$", shown, re.MULTILINE))
    assert [*summaries] == [
        "serve",
        "fetch",
        "push",
        "fit",
        "convert",
        "usage",
        "dataset",
        "keys",
        "roles",
        "db",
        "settings",
    ]
    assert [name for name, summary in summaries.items() if not summary.endswith(".")] == []
