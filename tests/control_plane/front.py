"""A front before an MLflow server: it checks who asks, counts, and can end an answer early."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "server", "date"})


class Front(ThreadingHTTPServer):
    """Forwards every GET and POST. `authorization`: what each must bring;
    `cuts`: how many bodies end early."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.behind = urlparse(behind)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.authorization: str | None = None
        self.cuts = 0
        self.cut_bytes = 1 << 20
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def downloads(self) -> list[str]:
        """Names of the files asked for."""
        return sorted(path.rpartition("/")[2] for path in self.asked if path.startswith(ARTIFACTS))


class Forward(BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        front = self.server
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        with front.lock:
            front.asked.append(path)
            large = path.startswith(ARTIFACTS) and path.endswith(".safetensors")
            cut = large and front.cuts > 0
            front.cuts -= cut
        if front.authorization and self.headers["Authorization"] != front.authorization:
            self.send_error(401)
            return
        backend = http.client.HTTPConnection(
            str(front.behind.hostname), front.behind.port, timeout=60
        )
        backend.request(
            self.command, self.path, body, {**self.headers, "Host": front.behind.netloc}
        )
        answer = backend.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Connection", "close")
        self.end_headers()
        left = front.cut_bytes if cut else 1 << 40
        while left > 0 and (chunk := answer.read(min(left, 1 << 20))):
            self.wfile.write(chunk)
            left -= len(chunk)
        backend.close()
        if cut:
            self.close_connection = True

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def before(server: str) -> Iterator[Front]:
    """A running front of `server`."""
    with Front(server) as front:
        threading.Thread(target=partial(front.serve_forever, 0.01), daemon=True).start()
        yield front
        front.shutdown()
