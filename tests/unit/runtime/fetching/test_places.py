"""The registry's credentials go to the registry's own host,
and a location opens no file of this machine."""

from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from llm_runtime.contract import ENV_ARTIFACT_HOSTS, ENV_MLFLOW_PASSWORD, ENV_MLFLOW_USERNAME
from llm_runtime.errors import RegistryDenied
from llm_runtime.fetching.registry import MlflowRegistry, check_place

HTTPS = "https://mlflow.example.com"
HTTP = "http://mlflow:5000"
SERVED = "api/2.0/mlflow-artifacts/artifacts/0/x"


class Listener:
    """A server that lists no files, and remembers who said who he is."""

    def __init__(self) -> None:
        heard: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self.headers.get("Authorization"))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"files": []}')

            def log_message(self, *_: object) -> None: ...

        self.heard = heard
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def other() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_MLFLOW_USERNAME, "pods")
    monkeypatch.setenv(ENV_MLFLOW_PASSWORD, "a secret")
    monkeypatch.delenv(ENV_ARTIFACT_HOSTS, raising=False)


@pytest.mark.parametrize("location", ["http://{}/" + SERVED, "mlflow-artifacts://{}/0/x"])
def test_a_version_that_lies_elsewhere_gets_no_credentials_there(
    other: Listener, location: str
) -> None:
    with pytest.raises(RegistryDenied, match="its credentials are not sent there"):
        MlflowRegistry(HTTP).sizes(location.format(other.host))
    assert other.heard == []


@pytest.mark.parametrize(
    "location",
    [
        "http:///{other}/x", "http:{other}/x", "http:\\\\{other}/x", "//{other}/x", "http://{own}@{other}/x",
        "http://{own}\\@{other}/x", "http://{other}#@{own}/x", "http://{own}:{other}/x", "HTTP://{other}/x",
        "mlflow-artifacts:////{other}/x", "mlflow-artifacts:{other}/x", "MLFLOW-ARTIFACTS://{other}/0/x",
        "mlflow-artifacts://{own}/@{other}/x",
    ],
)  # fmt: skip
def test_an_odd_address_leads_nowhere_else(other: Listener, location: str) -> None:
    own = Listener()
    with suppress(Exception):
        MlflowRegistry(f"http://{own.host}").sizes(location.format(other=other.host, own=own.host))
    own.close()
    assert other.heard == []


def test_a_host_of_the_configuration_gets_them(
    other: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_ARTIFACT_HOSTS, f"store.example.com,{other.host}")
    assert MlflowRegistry(HTTP).sizes(f"http://{other.host}/{SERVED}") == {}
    assert [str(heard).partition(" ")[0] for heard in other.heard] == ["Basic"]


@pytest.mark.parametrize(
    ("server", "location"),
    [
        (HTTPS, "https://mlflow.example.com/x"),
        (HTTPS, "https://MLflow.example.com:443/x"),
        (HTTP, "http://mlflow:5000/x"),
        (HTTP, "mlflow-artifacts:/0/x"),
        (HTTP, "mlflow-artifacts://mlflow:5000/0/x"),
        (HTTP, "s3://bucket/x"),
        (HTTP, "runs:/1/model"),
        ("sqlite:///mlflow.db", "file:///srv/mlruns/0/x"),
        ("sqlite:///mlflow.db", "mlruns/0/x"),
    ],
)
def test_places_of_the_server_itself(server: str, location: str) -> None:
    check_place(location, server)


@pytest.mark.parametrize(
    ("server", "location"),
    [
        (HTTPS, "https://mlflow.example.com.other.example/x"),
        (HTTPS, "https://mlflow.example.com@other.example/x"),
        (HTTPS, "https://other.example\\@mlflow.example.com/x"),
        (HTTPS, "HTTPS://other.example/x"),
        (HTTPS, "https://mlflow.example.com:8443/x"),
        (HTTPS, "https://mlflow.example.com:port/x"),
        (HTTPS, "http://mlflow.example.com:443/x"),
        (HTTP, "http://mlflow/x"),
        (HTTP, "mlflow-artifacts://other:5000/0/x"),
        (HTTP, "file:///etc/llm-runtime/keys"),
        (HTTP, "FILE:/etc"),
        (HTTP, "/etc/llm-runtime"),
        (HTTP, "../etc"),
    ],
)
def test_places_that_a_location_must_not_lead_to(server: str, location: str) -> None:
    with pytest.raises(RegistryDenied):
        check_place(location, server)


def test_a_folder_of_this_machine_is_not_read_for_a_server(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a secret")
    with pytest.raises(RegistryDenied, match="which can't be read from here"):
        MlflowRegistry(HTTP).sizes(str(tmp_path))
