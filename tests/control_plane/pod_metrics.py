"""A played pod that has an address and tells the operator its figures there, as the runtime does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import secrets_told
from llm_runtime import contract

MOMENT = "2026-01-01T00:00:00Z"


class PodMetrics:
    """Serves `text` at `address`, which is a loopback one: nothing leaves this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.text = ""
        self.asked = 0

    @property
    def placed(self) -> dict[str, Any]:
        """The part of a pod's status that says where it is."""
        return {"podIP": self.address, "podIPs": [{"ip": self.address}]}

    @property
    def ready(self) -> dict[str, Any]:
        """The status of a ready pod."""
        true = {"status": "True", "lastTransitionTime": MOMENT}
        conditions = [{"type": kind, **true} for kind in ("PodScheduled", "Ready")]
        return {**self.placed, "phase": "Running", "conditions": conditions}

    def fetching(self, state: dict[str, Any]) -> dict[str, Any]:
        """The status of a pod whose fetching container is in `state`."""
        container = {"name": "fetch", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}
        return {**self.placed, "initContainerStatuses": [container]}

    def loaded(self, **versions: str) -> None:
        """From now on these versions of adapters answer."""
        lines = [f'{contract.METRIC_ADAPTER_LOADED}{{adapter="{n}",version="{v}"}} 1' for n, v in versions.items()]
        self.text = "\n".join([f"# TYPE {contract.METRIC_ADAPTER_LOADED} gauge", *lines, ""])

    def copied(self, candidate: str, compared: int, differing: int) -> None:
        """So many copies were compared for the candidate, and so many of their answers had another text."""
        counted = {
            contract.METRIC_SHADOW_COPIES: ("result", "compared", compared),
            contract.METRIC_SHADOW_COMPARED: ("what", "exact", compared),
            contract.METRIC_SHADOW_DIFFERENCE: ("what", "exact", differing),
        }
        self.text = "".join(
            f'# TYPE {name} counter\n{name}_total{{candidate="{candidate}",{label}="{value}"}} {count}\n'
            for name, (label, value, count) in counted.items()
        )

    def downloaded(self, done: float, total: float, rate: float) -> None:
        """So far the download is now; in bytes, and bytes per second."""
        names = (contract.METRIC_DOWNLOADED_BYTES, contract.METRIC_DOWNLOAD_SIZE_BYTES, contract.METRIC_DOWNLOAD_RATE)
        figures = zip(names, (done, total, rate), strict=True)
        self.text = "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in figures)


@contextmanager
def pod_metrics() -> Iterator[PodMetrics]:
    """A played pod's metrics, while the context lasts, at a loopback address of its own: the port is the runtime's."""
    pod = PodMetrics(f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["User-Agent"] != secrets_told.USER_AGENT:
                pod.asked += 1
            body = pod.text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer((pod.address, contract.PORT), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield pod
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
