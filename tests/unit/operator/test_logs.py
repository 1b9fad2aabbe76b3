"""What the operator's log lines look like."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from llm_operator import logs


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    level = root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_times_are_utc_and_say_so(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format, "INFO")
    record = logging.makeLogRecord(
        {"name": "x", "levelno": 20, "levelname": "INFO", "msg": "hi", "created": 0.5}
    )
    record.msecs = 500
    logging.getLogger().handle(record)
    line = capsys.readouterr().err
    time = json.loads(line)["timestamp"] if log_format == "json" else re.split(" ", line)[0]
    assert time == "1970-01-01T00:00:00.500Z"
