"""What `model.uri` may say, and what it says back;
the hub's API by a stand-in that serves a folder."""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devstack.ports import free_port
from llm_operator.ports.pods import read
from llm_operator.state import Download
from llm_runtime.__main__ import _fetch as bring
from llm_runtime.contract import METRICS_PATH, MlflowVersion, ModelConfig, RuntimeConfig
from llm_runtime.errors import ConfigInvalid, ModelNotFound, RegistryDenied, RegistryUnreachable
from llm_runtime.fetching.fetch import fetch
from llm_runtime.fetching.hub import Hub
from llm_runtime.fetching.retry import Patience
from llm_runtime.fetching.sources import Pinned, Reference, find
from llm_runtime.files.verify import is_whole
from unit.runtime.fetching.fakes import write_model
from unit.runtime.fetching.test_figures import get

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """One model, acme/bot, whose branch `main` is COMMIT; for those with the token `secret`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        folder = self.server.folder
        self.server.asked.append(path)
        if self.headers["Authorization"] != "Bearer secret":
            self.send_error(401)
        elif path in (f"/api/models/acme/bot/revision/{name}" for name in ("main", COMMIT)):
            files = [
                {"rfilename": file.name, "size": file.stat().st_size} for file in folder.iterdir()
            ]
            self._answer(json.dumps({"sha": COMMIT, "siblings": files}).encode())
        elif path.startswith(f"/acme/bot/resolve/{COMMIT}/"):
            if path.endswith(".safetensors"):
                self.server.go_on.wait(5)
            self._answer((folder / path.rpartition("/")[2]).read_bytes())
        else:
            self.send_error(404)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(write_model(tmp_path / "hub", sharded=True)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "secret")
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield server
        server.shutdown()


def test_a_model_of_the_hub_is_pinned_to_its_commit(hub: Server, tmp_path: Path) -> None:
    folder = fetch(ModelConfig(name="x", uri="hf://acme/bot@main"), tmp_path / "models")
    assert is_whole(folder)
    assert folder.name.startswith(f"bot-{COMMIT[:12]}-")
    assert json.loads((folder / "manifest.json").read_text())["source"] == f"hf://acme/bot@{COMMIT}"
    hub.asked.clear()
    assert fetch(ModelConfig(name="x", uri="hf://acme/bot"), tmp_path / "models") == folder
    assert hub.asked == ["/api/models/acme/bot/revision/main"]


def test_the_hub_refuses_without_a_token_and_knows_no_others(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFound, match=r"correct model.uri"):
        fetch(ModelConfig(name="x", uri="hf://acme/other"), tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGINGFACE_TOKEN", raising=False)
    with pytest.raises(RegistryDenied, match="set HF_TOKEN"):
        fetch(ModelConfig(name="x", uri="hf://acme/bot"), tmp_path)
    # A Secret that was made of a file often ends with a line break.
    monkeypatch.setenv("HUGGINGFACE_TOKEN", "secret\n")
    assert is_whole(fetch(ModelConfig(name="x", uri="hf://acme/bot"), tmp_path))


def test_a_hub_that_is_away_is_said_in_a_sentence_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        RegistryUnreachable, match=r"\(ConnectionRefusedError: .*HF_ENDPOINT to a mirror"
    ) as raised:
        Hub().commit("hf://acme/bot")
    assert len(str(raised.value)) < 250


def test_what_names_a_version_or_a_place_needs_no_question() -> None:
    server = "http://nowhere.invalid"
    version = MlflowVersion(tracking_uri=server, name="bot", version="3", sub_path="a")
    assert find(Reference("models:/bot/3", server, "a"), Patience()) == version
    for uri in (
        "models:/m-0123abcd",
        "runs:/0123/model",
        "mlflow-artifacts:/0/0123/artifacts/model",
    ):
        assert find(Reference(uri, server, "a"), Patience()) == Pinned(
            uri.rpartition("/")[2], uri, server, "a"
        )


@pytest.mark.parametrize(
    ("uri", "server", "words"),
    [
        ("models:/bot", "http://m", "is not one of models:/name/3"),
        ("models:/bot/3/more", "http://m", "is not one of"),
        ("ftp://host/model", "http://m", "is not one of"),
        ("bot", "http://m", "is not one of"),
        ("runs:/0123/model", "", "set model.trackingUri or MLFLOW_TRACKING_URI"),
        ("hf://bot", "", "hf://org/name@revision"),
        ("s3://bucket/model", "", r"pip install 'llm-operator\[s3\]'"),
        ("gs://bucket/model", "", r"pip install 'llm-operator\[gcs\]'"),
        ("abfss://container@account/model", "", r"pip install 'llm-operator\[azure\]'"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_way_out(
    uri: str, server: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigInvalid, match=words):
        fetch(ModelConfig(name="x", uri=uri, tracking_uri=server), tmp_path)


def test_a_hub_that_is_away_is_asked_again_and_then_what_it_said_last_is_served(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(
        "llm_runtime.fetching.fetch.Patience", lambda *_: Patience(pauses.append, lambda: 0.5)
    )
    config = ModelConfig(name="x", uri="hf://acme/bot@main")
    folder = fetch(config, tmp_path / "models")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(config, tmp_path / "models") == folder
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert "serving the version that the uri last resolved to" in caplog.text
    with pytest.raises(RegistryUnreachable):
        fetch(ModelConfig(name="x", uri="hf://acme/bot@other"), tmp_path / "models")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(RegistryUnreachable):
        fetch(config, tmp_path / "models")


def test_the_sub_path_chooses_in_a_folder_and_not_in_a_version_that_has_its_own(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        write_model(tmp_path / "source" / name)
    config = ModelConfig(name="x", uri=(tmp_path / "source").as_uri(), sub_path="b")
    assert fetch(config, tmp_path / "models") == tmp_path / "source/b"
    version = MlflowVersion(tracking_uri="http://m", name="bot", version="3")
    with pytest.raises(ConfigInvalid, match=r"model\.mlflow\.subPath"):
        fetch(ModelConfig(name="x", mlflow=version, sub_path="b"), tmp_path / "models")


def test_while_the_model_comes_the_operator_hears_how_far_it_is(
    hub: Server, tmp_path: Path
) -> None:
    config = RuntimeConfig(model=ModelConfig(name="x", uri="hf://acme/bot"))
    port = free_port()
    hub.go_on.clear()
    fetching = threading.Thread(
        target=bring, args=(config, tmp_path / "models", ("127.0.0.1", port))
    )
    fetching.start()
    total = sum(file.stat().st_size for file in hub.folder.iterdir())
    while (found := heard(port)) is None:
        time.sleep(0.01)
    hub.go_on.set()
    fetching.join()
    assert found.total_bytes == total
    assert is_whole((tmp_path / "models/current").resolve())


def heard(port: int) -> Download | None:
    try:
        return read(get(port, METRICS_PATH)).download
    except OSError:  # It does not listen yet.
        return None
