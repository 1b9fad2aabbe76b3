"""Log lines: one format for everybody, the request's id on each, and no prompt or key in any."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from harness import KEY, Harness
from llm_runtime import logs
from llm_runtime.contract import FatalReport, report_from_termination_message


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What is logged as JSON during a test."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    logs.configure("json", "DEBUG", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


async def test_a_request_leaves_an_access_line_without_prompt_or_key(output: io.StringIO, api: Harness) -> None:
    response = await api.chat(messages=[{"role": "user", "content": "my secret prompt"}])
    await api.client.get("/v1/models?api_key=leak")
    access = [line for line in lines(output) if line["logger"] == "llm_runtime.access"]
    assert access[0]["endpoint"] == "/v1/chat/completions"
    assert (access[0]["status"], access[0]["key_id"]) == (200, "web")
    assert access[0]["request_id"] == response.headers["x-request-id"]
    assert access[0]["duration_seconds"] > 0
    text = output.getvalue()
    assert "secret" not in text
    assert "leak" not in text
    assert KEY not in text


async def test_probes_are_quiet(output: io.StringIO, api: Harness) -> None:
    await api.client.get("/readyz")
    assert [line["level"] for line in lines(output) if line.get("endpoint") == "/readyz"] == ["DEBUG"]


def test_uvicorns_lines_take_the_same_road(output: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("hello %s", "there", extra={"color_message": "x"})
    [line] = lines(output)
    assert (line["logger"], line["level"], line["message"]) == ("uvicorn.error", "WARNING", "hello there")
    assert "color_message" not in line


def test_the_console_format_is_for_people() -> None:
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("console", "INFO", stream)
        logging.getLogger("some.place").info("Read %d keys", 3, extra={"path": "/x"})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert stream.getvalue().rstrip().endswith("INFO    some.place: Read 3 keys  path=/x")


def test_a_fatal_report_is_one_line_that_the_operator_reads() -> None:
    stream = io.StringIO()
    report = FatalReport(reason="DiskFull", message="no room\nfor \u2603")
    logs.report_fatal(report, stream)
    assert stream.getvalue().count("\n") == 1
    assert report_from_termination_message(f"earlier line\n{stream.getvalue()}") == report
