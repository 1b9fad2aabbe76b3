"""What a download says of itself while it runs, and that the operator understands it."""

import logging
import socket
import urllib.error
import urllib.request

import pytest

from devstack.ports import free_port
from llm_operator.ports.pods import read
from llm_operator.state import Download
from llm_runtime.contract import LIVE_PATH, METRICS_PATH, READY_PATH
from llm_runtime.fetching.figures import DownloadFigures, exposed
from unit.runtime.fetching.test_progress import Clock


def get(port: int, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
        return str(answer.read().decode())


def test_the_operator_reads_what_a_fetching_pod_says() -> None:
    clock = Clock()
    port = free_port()
    figures = DownloadFigures(clock)
    with exposed(figures, "127.0.0.1", port):
        assert read(get(port, METRICS_PATH)).download is None
        figures(200, 1000)
        clock.now += 10
        figures(630, 1000)
        assert read(get(port, METRICS_PATH)).download == Download(630, 1000, 43)
        assert get(port, LIVE_PATH)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(port, READY_PATH)
    with pytest.raises(urllib.error.URLError):
        get(port, LIVE_PATH)
    with exposed(figures, "127.0.0.1", port):  # At once, as `serve` will.
        assert get(port, LIVE_PATH)


def test_a_port_that_is_taken_costs_the_figures_only(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, caplog.at_level(logging.WARNING):
        ran = []
        with exposed(DownloadFigures(), "127.0.0.1", other.getsockname()[1]):
            ran.append(True)
    assert ran
    assert "no metrics of the download: can't listen" in caplog.text
