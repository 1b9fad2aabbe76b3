"""A download's progress as Prometheus metrics, on the port that `serve` uses afterwards.
The operator reads it, too."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from llm_runtime.contract import (
    LIVE_PATH,
    METRIC_DOWNLOAD_RATE,
    METRIC_DOWNLOAD_SIZE_BYTES,
    METRIC_DOWNLOADED_BYTES,
    METRICS_PATH,
)
from llm_runtime.fetching.progress import Progress, Rate

log = logging.getLogger(__name__)

CLIENT_SECONDS = 5.0
"""Time-out of a connection on which nothing arrives."""


class DownloadFigures:
    """A `Progress` that keeps its figures as Prometheus metrics."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = CollectorRegistry()
        self._rate = Rate(clock)
        self._done = Gauge(
            METRIC_DOWNLOADED_BYTES, "Bytes of the model that are here", registry=self._registry
        )
        self._size = Gauge(
            METRIC_DOWNLOAD_SIZE_BYTES, "Bytes of the whole model", registry=self._registry
        )
        self._speed = Gauge(
            METRIC_DOWNLOAD_RATE, "Over the last ten seconds", registry=self._registry
        )

    def __call__(self, done: int, total: int) -> None:
        self._done.set(done)
        self._size.set(total)
        self._speed.set(self._rate(done))

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def both(one: Progress, other: Progress) -> Progress:
    """A `Progress` that reports to both."""

    def report(done: int, total: int) -> None:
        one(done, total)
        other(done, total)

    return report


@contextmanager
def exposed(figures: DownloadFigures, host: str, port: int) -> Iterator[None]:
    """Serve /metrics and /livez during the block.
    If the port is taken, that is logged and the block runs anyway."""
    try:
        server = _Server(figures, host, port)
    except OSError as error:
        log.warning(f"no metrics of the download: can't listen on {host}:{port}: {error}")
        yield
        return
    with server:
        threading.Thread(
            target=server.serve_forever, args=(0.1,), name="download-metrics", daemon=True
        ).start()
        try:
            yield
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, figures: DownloadFigures, host: str, port: int) -> None:
        self.figures = figures
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == METRICS_PATH:
            self._send(HTTPStatus.OK, CONTENT_TYPE_LATEST, self.server.figures.text())
        elif path == LIVE_PATH:
            self._send(HTTPStatus.OK, "text/plain", b"downloading\n")
        else:
            self._send(
                HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the model is being downloaded\n"
            )

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
