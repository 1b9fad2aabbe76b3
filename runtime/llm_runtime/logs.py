"""Logging to standard output and to a rotated file, as JSON or for a terminal.

Each line has the id of its request.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from typing import Any, Literal, TextIO

import orjson

from llm_runtime.contract import FatalReport, ServerConfig

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

QUIET = ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "aiosqlite", "alembic")
"""Libraries whose INFO is noise here."""

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {
    "color_message",
    "taskName",
    "asctime",
    "message",
}
"""Attributes that every record has. The others are extras, which are logged."""


_hidden: dict[str, str] = {}


def hide(private: Mapping[str, str]) -> None:
    """Redact secrets in every line and report: write `$NAME` for each value.
    `private`: variables' names by value."""
    _hidden.clear()
    _hidden.update(private)


def shown(text: str) -> str:
    """`text` without the secrets that `hide` was given."""
    for value, name in _hidden.items():
        if value in text:
            text = text.replace(value, f"${name}")
    return text


def format_of(server: ServerConfig) -> Literal["json", "console"]:
    """The format for standard output: as configured;
    else `console` on a terminal and JSON elsewhere."""
    configured = "log_format" in server.model_fields_set
    return "console" if not configured and sys.stdout.isatty() else server.log_format


def configure(
    format_: Literal["json", "console"], level: str, stream: TextIO | None = None
) -> None:
    """Send all loggers, including uvicorn's, to one handler.
    It has one stream: the lines of two would mix."""
    # No format prints file and line, and finding them costs as much as writing the line.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    _install(logging.StreamHandler(stream or sys.stdout), format_, level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def add_file(server: ServerConfig) -> None:
    """Also log to `server.log_file`. Call it after `configure`.
    Raises OSError if the file can't be written."""
    if server.log_file:
        handler = _Rotating(
            server.log_file, "a", server.log_file_bytes, server.log_file_backups, encoding="utf-8"
        )
        handler.setFormatter(_formatter(server.log_format))
        logging.getLogger().addHandler(handler)


def report_fatal(report: FatalReport, stream: TextIO | None = None) -> None:
    """Print the fatal error as the process's last line:
    JSON, which the operator reads, or plain on a terminal."""
    out = stream or sys.stdout
    message = shown(report.message)
    now = datetime.now(UTC).isoformat()
    line = {"timestamp": now, "level": "CRITICAL", "reason": report.reason, "message": message}
    print(f"{report.reason}: {message}" if out.isatty() else json.dumps(line), file=out, flush=True)


def _install(handler: logging.Handler, format_: str, level: str) -> None:
    handler.setFormatter(_formatter(format_))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _formatter(format_: str) -> logging.Formatter:
    return JsonFormatter() if format_ == "json" else ConsoleFormatter()


class JsonFormatter(logging.Formatter):
    """`{"timestamp":"2026-01-01T12:00:00.000000Z","level":"INFO","logger":…,"message":…,"request_id":…, …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return shown(
                orjson.dumps(
                    line, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
                ).decode()
            )
        except (
            TypeError
        ):  # orjson refuses half of a surrogate pair, and numbers of more than 64 bits.
            return shown(json.dumps(line, default=str))


class ConsoleFormatter(logging.Formatter):
    """`04:05:06 INFO    llm_runtime.auth.callers: Read 3 API keys  key=value …`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        pairs = [f"{key}={value}" for key, value in _extras(record).items()]
        return "  ".join([super().formatMessage(record), *pairs])


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    """The record's extras, and the current request's id."""
    extras = {key: value for key, value in vars(record).items() if key not in _RESERVED}
    if current := request_id.get():
        extras.setdefault("request_id", current)
    return extras


class _Rotating(RotatingFileHandler):
    """Truncates a full file if no backups are wanted. Python's own handler would let it grow."""

    def doRollover(self) -> None:
        if self.backupCount:
            super().doRollover()
        elif self.stream:
            self.stream.truncate(0)
