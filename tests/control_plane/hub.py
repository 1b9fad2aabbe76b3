"""A stand-in for the Hugging Face Hub: one repository, one commit, a token, and a rate."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from secrets_told import invented

REPOSITORY = "team/bot"
COMMIT = "0123456789" * 4
TOKEN = invented("hub-token")
PIECE_BYTES = 16 << 10


@contextmanager
def hub(folder: Path, bytes_per_second: float) -> Iterator[str]:
    """The address of a hub that has the files of `folder`,
    and gives each no faster than `bytes_per_second`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            info = f"/api/models/{REPOSITORY}/revision/{COMMIT}"
            path = self.path.partition("?")[0]
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, b"")
            elif path == info:
                siblings = [
                    {"rfilename": file.name, "size": file.stat().st_size}
                    for file in folder.iterdir()
                ]
                self.answer(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
            else:
                self.answer(
                    200,
                    (folder / path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")).read_bytes(),
                )

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for start in range(0, len(body), PIECE_BYTES):
                self.wfile.write(body[start : start + PIECE_BYTES])
                time.sleep(min(PIECE_BYTES, len(body)) / bytes_per_second)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
