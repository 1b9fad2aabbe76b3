"""Logs on standard output: JSON or for a terminal, each line with the id of the request it belongs to."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

from llm_runtime.contract import FatalReport

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

QUIET = ("httpx", "httpcore", "urllib3", "filelock", "asyncio")
"""Libraries whose INFO is noise here."""


class _RequestId(logging.Filter):
    """Put the current request's id on a record that has none."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id") and (current := request_id.get()):
            record.request_id = current
        return True


def configure(format_: Literal["json", "console"], level: str, stream: TextIO | None = None) -> None:
    """Send every logger, uvicorn's too, to one handler. One stream only: two would not keep their order."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(_json_formatter() if format_ == "json" else _ConsoleFormatter())
    handler.addFilter(_RequestId())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def report_fatal(report: FatalReport, stream: TextIO | None = None) -> None:
    """Print why the process gives up, as its last line: the kubelet carries it into the pod's status."""
    now = datetime.now(UTC).isoformat()
    line = {"timestamp": now, "level": "CRITICAL", "reason": report.reason, "message": report.message}
    print(json.dumps(line), file=stream or sys.stdout, flush=True)


def _json_formatter() -> logging.Formatter:
    formatter: logging.Formatter = JsonFormatter(
        "%(message)s",
        timestamp="timestamp",
        rename_fields={"levelname": "level", "name": "logger"},
        reserved_attrs=[*_RESERVED],
    )
    return formatter


_RESERVED = frozenset(vars(logging.makeLogRecord({}))) - {"levelname", "name"} | {
    "color_message",
    "taskName",
    "asctime",
}


class _ConsoleFormatter(logging.Formatter):
    """`04:05:06 INFO    llm_runtime.auth: Read 3 API keys  key=value …`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        extras = {key: value for key, value in vars(record).items() if key not in _RESERVED and key != "message"}
        pairs = [f"{key}={value}" for key, value in extras.items() if key not in ("levelname", "name")]
        return "  ".join([super().formatMessage(record), *pairs])
