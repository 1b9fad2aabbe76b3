"""What the status says while pods fetch: a running operator asks pods over HTTP, at the addresses in their status."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from control_plane.operator_fixtures import Place, eventually
from llm_runtime import contract

pytestmark = pytest.mark.control_plane
pytest_plugins = ["control_plane.operator_fixtures"]
ADDRESS = "127.0.7.63"
"""Of the played pod: loopback, so that nothing leaves this machine."""
MOMENT = "2026-01-01T00:00:00Z"
TOTAL, RATE = 1e9, 41e6


class FetchingPod:
    """The metrics of a pod that downloads."""

    def __init__(self) -> None:
        self.done, self.asked = 630e6, 0
        pod = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pod.asked += 1
                body = pod.metrics().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer((ADDRESS, contract.PORT), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def metrics(self) -> str:
        figures = {
            contract.METRIC_DOWNLOADED_BYTES: self.done,
            contract.METRIC_DOWNLOAD_SIZE_BYTES: TOTAL,
            contract.METRIC_DOWNLOAD_RATE: RATE,
        }
        return "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in figures.items())


@pytest.fixture
def fetching() -> Iterator[FetchingPod]:
    pod = FetchingPod()
    pod.thread.start()
    yield pod
    pod.server.shutdown()
    pod.server.server_close()
    pod.thread.join()


def played(state: dict[str, Any]) -> dict[str, Any]:
    """The status of a pod whose fetching container is in `state`."""
    container = {"name": "fetch", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}
    return {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}], "initContainerStatuses": [container]}


def said(place: Place, kind: str, text: str) -> dict[str, Any]:
    condition = place.condition(kind)
    assert condition["reason"] == "Downloading", condition
    assert text in condition["message"]
    return condition


def test_a_download_moves_in_the_status_and_ends_without_a_trace(place: Place, fetching: FetchingPod) -> None:
    place.model()
    place.kubelet.fate[place.name, "1"] = played({"running": {"startedAt": MOMENT}})
    place.deploy()
    for kind in ("Progressing", "Ready", "Reconciling"):
        eventually(lambda kind=kind: said(place, kind, "downloading 63 %, 41 MB/s, 9 s left"))
    fetching.done = 910e6
    eventually(lambda: said(place, "Progressing", "downloading 91 %, 41 MB/s, 2 s left"), 8)
    ended = {"terminated": {"exitCode": 0, "startedAt": MOMENT, "finishedAt": MOMENT}}
    ready = [{"type": kind, "status": "True", "lastTransitionTime": MOMENT} for kind in ("PodScheduled", "Ready")]
    place.kubelet.fate[place.name, "1"] = {**played(ended), "phase": "Running", "conditions": ready}
    place.ready()
    asked, version = fetching.asked, (place.get("LLMDeployment", "bot") or {})["metadata"]["resourceVersion"]
    time.sleep(7)
    assert fetching.asked == asked
    assert (place.get("LLMDeployment", "bot") or {})["metadata"]["resourceVersion"] == version
    assert not place.events("Downloading")
