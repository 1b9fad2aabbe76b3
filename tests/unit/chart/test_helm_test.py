"""`helm test`: the pod that the chart makes,
and its program, beside servers that play operator and API server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_operator.plans.names import MANAGED_SELECTOR
from unit.chart.rendered import Chart, Json

pytestmark = pytest.mark.timeout(20)
GROUP = "/apis/llm-operator.dev/v1alpha1"
KINDS = [
    "llmdeployments",
    "llmdeployments/status",
    "llmdeployments/scale",
    "apikeys",
    "apikeys/status",
]


@dataclass
class Played:
    """Operator and API server in one; answers by path, and what was asked with which token."""

    answers: dict[str, tuple[int, str]]
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def played() -> Iterator[Played]:
    served = json.dumps({"resources": [{"name": name} for name in KINDS]})
    world = Played(
        {
            "/readyz": (200, "{}"),
            "/metrics": (200, "llm_operator_leader 1.0\n"),
            GROUP: (200, served),
            f"{GROUP}/llmdeployments?limit=1": (200, '{"items": []}'),
            f"{GROUP}/apikeys?limit=1": (200, '{"items": []}'),
        }
    )

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            world.asked.append((self.path, self.headers.get("Authorization", "")))
            status, body = world.answers.get(self.path, (404, "no such path"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    world.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield world
    server.shutdown()
    thread.join()
    server.server_close()


def ran(pod: Json, played: Played, folder: Path) -> subprocess.CompletedProcess[str]:
    """The container's own command, with the addresses of the played servers."""
    (folder / "token").write_text("the-token")
    (container,) = pod["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    environment |= {"SERVICE_URL": played.url, "API_URL": played.url, "ACCOUNT_FOLDER": str(folder)}
    environment |= {
        "WITHIN_SECONDS": "0",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, *container["command"][1:], *container["args"]]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_all_is_well(chart: Chart, played: Played, tmp_path: Path) -> None:
    done = ran(chart.test_pod(), played, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok:") == 4
    # The operator's own answers need no token, and get none.
    assert {path: token for path, token in played.asked if token} == {
        path: "Bearer the-token" for path in played.answers if path.startswith(GROUP)
    }


@pytest.mark.parametrize(
    ("path", "status", "body", "told"),
    [
        ("/readyz", 503, '{"status": "deaf"}', 'answers 503: {"status": "deaf"}'),
        ("/metrics", 200, "go_goroutines 1", "is not the operator's"),
        (GROUP, 404, "404 page not found", "answers 404: 404 page not found"),
        (
            GROUP,
            200,
            json.dumps({"resources": [{"name": n} for n in KINDS[:3]]}),
            "does not serve apikeys, apikeys/st",
        ),
        (f"{GROUP}/apikeys?limit=1", 403, "forbidden: User", "answers 403: forbidden: User"),
    ],
)
def test_what_is_wrong_is_told_and_the_rest_is_looked_at_all_the_same(
    chart: Chart, played: Played, tmp_path: Path, path: str, status: int, body: str, told: str
) -> None:
    played.answers[path] = (status, body)
    done = ran(chart.test_pod(), played, tmp_path)
    assert done.returncode == 1
    assert told in done.stdout
    assert done.stdout.count("FAILED:") == 1
    assert done.stdout.count("ok:") == 3


def test_a_service_that_nobody_answers_is_named(
    chart: Chart, played: Played, tmp_path: Path
) -> None:
    url = played.url
    played.url = "http://127.0.0.1:9"
    done = ran(chart.test_pod(), played, tmp_path)
    assert "http://127.0.0.1:9/readyz can't be reached" in done.stdout
    assert done.returncode == 1
    played.url = url


def test_an_operator_of_some_namespaces_is_tried_in_the_first(
    chart: Chart, played: Played, tmp_path: Path
) -> None:
    for plural in ("llmdeployments", "apikeys"):
        played.answers[f"{GROUP}/namespaces/team-a/{plural}?limit=1"] = played.answers.pop(
            f"{GROUP}/{plural}?limit=1"
        )
    done = ran(chart.test_pod(watchNamespaces=["team-a", "team-b"]), played, tmp_path)
    assert done.returncode == 0, done.stdout


def test_it_needs_no_image_but_the_operators_and_is_never_sent_requests(chart: Chart) -> None:
    values = {
        "image": {"repository": "example.com/operator", "tag": "7"},
        "imagePullSecrets": [{"name": "s"}],
    }
    pod = chart.test_pod(**values)
    operator = chart.one("Deployment", **values)["spec"]["template"]
    assert pod["spec"]["containers"][0]["image"] == operator["spec"]["containers"][0]["image"]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "s"}]
    assert pod["spec"]["serviceAccountName"] == operator["spec"]["serviceAccountName"]
    selector = chart.one("Service")["spec"]["selector"]
    assert not selector.items() <= pod["metadata"]["labels"].items()
    assert (
        MANAGED_SELECTOR.split("=")[1] != pod["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    )
