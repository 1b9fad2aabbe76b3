"""Log lines: one format for everybody, the request's id on each, and no prompt or key in any."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness import KEY, Harness
from llm_runtime import logs
from llm_runtime.contract import FatalReport, ServerConfig, report_from_termination_message
from llm_runtime.settings.environment import private_values


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What is logged as JSON during a test."""
    root = logging.getLogger()
    stream = io.StringIO()
    handlers = root.handlers[:]
    level = root.level
    logs.configure("json", "DEBUG", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


async def test_a_request_leaves_an_access_line_without_prompt_or_key(
    output: io.StringIO, api: Harness
) -> None:
    response = await api.chat(messages=[{"role": "user", "content": "my secret prompt"}])
    await api.client.get("/v1/models?api_key=leak")
    access = [line for line in lines(output) if line["logger"] == "llm_runtime.access"]
    assert list(access[0])[:8] == [
        "timestamp", "level", "logger", "message", "method", "route", "status_code", "latency_ms",
    ]  # fmt: skip
    assert access[0]["message"] == "POST /v1/chat/completions - 200"
    assert (access[0]["route"], access[0]["status_code"]) == ("/v1/chat/completions", 200)
    assert (access[0]["method"], access[0]["key_id"]) == ("POST", "web")
    assert access[0]["request_id"] == response.headers["x-request-id"]
    assert access[0]["latency_ms"] > 0
    assert datetime.fromisoformat(access[0]["timestamp"]).tzinfo
    text = output.getvalue()
    assert "secret" not in text
    assert "leak" not in text
    assert KEY not in text


async def test_probes_are_quiet(output: io.StringIO, api: Harness) -> None:
    await api.client.get("/readyz")
    assert [line["level"] for line in lines(output) if line.get("route") == "/readyz"] == ["DEBUG"]


def test_uvicorns_lines_take_the_same_road(output: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("hello %s", "there", extra={"color_message": "x"})
    [line] = lines(output)
    assert (line["logger"], line["level"], line["message"]) == (
        "uvicorn.error",
        "WARNING",
        "hello there",
    )
    assert "color_message" not in line


def test_an_exception_and_odd_values_stay_one_line(output: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception(
            "failed", extra={"number": 1 << 80, "half": "\ud800", "path": Path("/x")}
        )
    [line] = lines(output)
    assert line["exception"].endswith("ValueError: two\nlines")
    assert (line["number"], line["path"]) == (1 << 80, "/x")


@pytest.mark.parametrize("backups", [0, 2])
def test_a_full_file_is_put_aside_and_only_so_many_are_kept(
    output: io.StringIO, tmp_path: Path, backups: int
) -> None:
    file = tmp_path / "runtime.log"
    logs.add_file(ServerConfig(log_file=str(file), log_file_bytes=4096, log_file_backups=backups))
    for number in range(200):
        logging.getLogger("x").info("line %d %s", number, "." * 100)
    files = sorted(tmp_path.iterdir())
    assert [found.name for found in files] == ["runtime.log", "runtime.log.1", "runtime.log.2"][
        : backups + 1
    ]
    assert all(found.stat().st_size <= 4096 for found in files)
    assert json.loads(file.read_text().splitlines()[-1])["message"].startswith("line 199")
    assert len(lines(output)) == 200


def test_a_file_that_cannot_be_written_is_an_error_at_the_start(
    output: io.StringIO, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="nowhere"):
        logs.add_file(ServerConfig(log_file=str(tmp_path / "nowhere" / "x.log")))


def test_the_console_format_is_for_people() -> None:
    root = logging.getLogger()
    stream = io.StringIO()
    handlers = root.handlers[:]
    level = root.level
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


def test_a_fatal_report_on_a_terminal_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    logs.report_fatal(
        FatalReport(reason="ModelNotFound", message="model.path /nope is not a folder"), stream
    )
    assert stream.getvalue() == "ModelNotFound: model.path /nope is not a folder\n"


def test_a_log_line_that_gives_a_reason_is_no_fatal_report(output: io.StringIO) -> None:
    """A server may be killed for its memory long after an adapter of it failed."""
    said = "adapter not loaded: no such version"
    logging.getLogger("llm_runtime.adapters.keeper").error(said, extra={"reason": "ModelNotFound"})
    assert report_from_termination_message(output.getvalue()) is None


@pytest.mark.parametrize(
    ("server", "terminal", "expected"),
    [
        (ServerConfig(), True, "console"),
        (ServerConfig(), False, "json"),
        (ServerConfig(log_format="json"), True, "json"),
        (ServerConfig(log_format="console"), False, "console"),
    ],
)
def test_a_terminal_gets_lines_for_people_where_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, server: ServerConfig, terminal: bool, expected: str
) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert logs.format_of(server) == expected


def test_what_came_by_the_environment_is_named_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/bot")
    monkeypatch.setenv("MODEL__PATH", "/hush/model")
    monkeypatch.setenv("KEY_PEPPER", "hush-pepper")
    monkeypatch.setenv("SERVER__DRAIN_SECONDS", "1200")
    monkeypatch.setenv("AUTHENTICATION", "Disabled")
    monkeypatch.setenv("MODEL_NAME", "support-bot")
    logs.hide(private_values(None))
    try:
        for formatter in (logs.JsonFormatter(), logs.ConsoleFormatter()):
            record = logging.makeLogRecord(
                {
                    "msg": "Disabled hush-pepper /models/bot is not a folder",
                    "folder": "/hush/model",
                    "ms": 1200,
                }
            )
            line = formatter.format(record)
            assert "hush" not in line
            assert "$KEY_PEPPER" in line
            assert "$MODEL__PATH" in line
            assert "/models/bot is not a folder" in line
            assert "Disabled" in line
            assert "1200" in line
    finally:
        logs.hide({})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HF_TOKEN", "hush-hush-hush\n", "a header: 'Bearer hush-hush-hush\\n'"),
        ("MLFLOW_TRACKING_PASSWORD", "hush-hush-hush", "hush-hush-hush was refused"),
        ("AWS_SECRET_ACCESS_KEY", "hush/hush-hush", "the key hush/hush-hush"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountKey=hush", "in AccountKey=hush"),
        ("HF_ENDPOINT", "https://me:hush-hush@mirror", "https://me:hush-hush@mirror is away"),
        (
            "HF_ENDPOINT",
            "https://hush-hush-hush-hush@mirror",
            "at https://hush-hush-hush-hush@mirror",
        ),
        ("https_proxy", "http://me:hush@proxy:3128", "no answer of http://me:hush@proxy:3128"),
    ],
    ids=lambda given: given if "hush" not in given else "",  # pytest writes it into a variable
)
def test_what_libraries_quote_of_the_environment_is_named_in_its_place(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    logs.hide(private_values(None))
    try:
        told = logs.shown(told)
        assert "hush" not in told
        assert f"${name.upper()}" in told
    finally:
        logs.hide({})


def test_words_in_variables_that_only_sound_secret_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "anything-at-all")
    logs.hide(private_values(None))
    try:
        assert logs.shown("true anything-at-all") == "true anything-at-all"
    finally:
        logs.hide({})
