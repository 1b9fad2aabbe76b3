"""A played pod that has an address and tells the operator its figures there,
as the runtime does."""

from __future__ import annotations

import json
import random
import threading
import time
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
        container = {
            "name": "fetch",
            "image": "i",
            "imageID": "i",
            "ready": False,
            "restartCount": 0,
            "state": state,
        }
        return {**self.placed, "initContainerStatuses": [container]}

    def loaded(self, **versions: str) -> None:
        """From now on these versions of adapters answer."""
        lines = [
            f'{contract.METRIC_ADAPTER_LOADED}{{adapter="{n}",version="{v}"}} 1'
            for n, v in versions.items()
        ]
        self.text = "\n".join([f"# TYPE {contract.METRIC_ADAPTER_LOADED} gauge", *lines, ""])

    def copied(self, candidate: str, compared: int, differing: int) -> None:
        """So many copies were compared for the candidate,
        and so many of their answers had another text."""
        counted = {
            contract.METRIC_SHADOW_COPIES: ("result", "compared", compared),
            contract.METRIC_SHADOW_COMPARED: ("what", "exact", compared),
            contract.METRIC_SHADOW_DIFFERENCE: ("what", "exact", differing),
        }
        self.text = "".join(
            f"# TYPE {name}_total"
            f' counter\n{name}_total{{candidate="{candidate}",{label}="{value}"}} {count}\n'
            for name, (label, value, count) in counted.items()
        )

    def downloaded(self, done: float, total: float, rate: float) -> None:
        """So far the download is now; in bytes, and bytes per second."""
        names = (
            contract.METRIC_DOWNLOADED_BYTES,
            contract.METRIC_DOWNLOAD_SIZE_BYTES,
            contract.METRIC_DOWNLOAD_RATE,
        )
        figures = zip(names, (done, total, rate), strict=True)
        self.text = "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in figures)

    def figures(self) -> str:
        """Its metrics now."""
        return self.text

    def answered(self) -> bytes:
        """What it says to a prompt."""
        return b"{}"


class ServingPod(PodMetrics):
    """Answers all prompts alike, and counts 20 requests per second, of which some are errors."""

    def __init__(self, address: str, said: str = "right", error_rate: float = 0.0) -> None:
        super().__init__(address)
        self.said = said
        self.error_rate = error_rate
        self._began = time.monotonic()

    def figures(self) -> str:
        """The counters now."""
        requests = int((time.monotonic() - self._began) * 20)
        errors = int(requests * self.error_rate)
        name = f"{contract.METRIC_API_REQUESTS}_total"
        counts = {"200": requests - errors, "500": errors}
        lines = [f'{name}{{status="{status}"}} {n}' for status, n in counts.items()]
        return "\n".join([f"# TYPE {name} counter", *lines, ""])

    def answered(self) -> bytes:
        """What it says to a prompt."""
        return json.dumps(
            {"choices": [{"index": 0, "text": self.said, "finish_reason": "stop"}]}
        ).encode()


def loopback() -> str:
    """An address that no other played pod has, in all likelihood."""
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"


@contextmanager
def pod_metrics(pod: PodMetrics | None = None) -> Iterator[PodMetrics]:
    """A played pod's metrics, while the context lasts, at a loopback address of its own:
    the port is the runtime's."""
    pod = pod or PodMetrics(loopback())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["User-Agent"] != secrets_told.USER_AGENT:
                pod.asked += 1
            self.answer(pod.figures().encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(pod.answered())

        def answer(self, body: bytes) -> None:
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
