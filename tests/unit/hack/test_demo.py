"""What the demo shows is what it does, and what it hints at runs."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devstack import demo
from devstack.stack import Stack

ROOT = Path(__file__).resolve().parents[3]


class Recorder(BaseHTTPRequestHandler):
    """Keeps what it was asked, and answers with nothing."""

    asked: dict[str, Any]

    def do_POST(self) -> None:
        Recorder.asked = {
            "path": self.path,
            "authorization": self.headers["Authorization"],
            "type": self.headers["Content-Type"],
            "body": json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
        }
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_the_curl_that_is_shown_is_the_request_that_is_sent() -> None:
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    demo.send(url, "the-key")
    thread.join()
    server.server_close()

    # The shell takes the line apart as it would for curl, which need not be there.
    shown = 'curl() { printf "%s\\0" "$@"; }; ' + demo.as_curl(url, "$KEY")
    done = subprocess.run(
        ["bash", "-c", shown],
        env={"KEY": "the-key", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    silent, address, *options = done.stdout.rstrip("\0").split("\0")
    assert silent == "-s"
    assert address == url + Recorder.asked["path"]
    assert options[::2] == ["-H", "-H", "-d"]
    headers = [
        f"Authorization: {Recorder.asked['authorization']}",
        f"Content-Type: {Recorder.asked['type']}",
    ]
    assert [options[1], options[3]] == headers
    assert json.loads(options[5]) == Recorder.asked["body"]


def test_a_finished_demo_leaves_nothing_and_a_failed_one_names_what_is_there(
    tmp_path: Path,
) -> None:
    # Before, half a gigabyte of pushed models stayed,
    # and a failure named logs that went with the control plane.
    with Stack(tmp_path / ".demo") as stack:
        assert stack.left() == []
        (stack.folder / "mlflow").mkdir()
        (stack.folder / "node.log").touch()
    assert stack.left() == ["mlflow/", "node.log"]
    stack.remove()
    assert list(tmp_path.iterdir()) == []
    assert stack.left() == []


def test_the_hints_run_in_another_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fails without the file: `python -m devstack.registry` needs PYTHONPATH,
    # and `python` and kubectl a PATH.
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / ".demo").mkdir()
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "kubectl").symlink_to("/bin/true")
    story = demo.Demo(cast("Stack", None))
    story.exports = {"PYTHONPATH": str(ROOT / "hack"), "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    story.programs = [tmp_path / "programs", Path(sys.executable).parent]
    story.url = "http://127.96.0.1"
    story.key = "a-key"
    file = story.write_exports()
    assert file.stat().st_mode & 0o077 == 0
    command = f'. {file} && kubectl && python -m devstack.registry alias --help && echo "$URL $KEY"'
    done = subprocess.run(
        ["bash", "-c", command],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("http://127.96.0.1 a-key\n")


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "bot-1"}, "status": status}


def test_a_pods_state_names_what_it_waits_for() -> None:
    fetching = {"name": "fetch", "ready": False, "state": {"running": {}}}
    behind = {
        "name": "runtime",
        "ready": False,
        "state": {"waiting": {"reason": "PodInitializing"}},
    }
    assert (
        demo.pod_state(pod(initContainerStatuses=[fetching], containerStatuses=[behind]))
        == "bot-1: fetch runs"
    )
    fetched = {"name": "fetch", "ready": True, "state": {"terminated": {"exitCode": 0}}}
    loading = {"name": "runtime", "ready": False, "state": {"running": {}}}
    assert (
        demo.pod_state(pod(initContainerStatuses=[fetched], containerStatuses=[loading]))
        == "bot-1: runtime runs, not ready yet"
    )
    stays = {"name": "adapters", "ready": True, "state": {"running": {}}}
    conditions = [{"type": "Ready", "status": "True"}]
    assert (
        demo.pod_state(pod(initContainerStatuses=[fetched, stays], conditions=conditions))
        == "bot-1 is ready"
    )
    broken = {
        "name": "runtime",
        "ready": False,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }
    assert demo.pod_state(pod(containerStatuses=[broken])) == "bot-1: CrashLoopBackOff"
    unplaced = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    assert (
        demo.pod_state(pod(phase="Pending", conditions=[unplaced]))
        == "bot-1: 0/1 nodes are available"
    )
    assert (
        demo.pod_state(pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}]))
        == "bot-1 is ready"
    )
    assert (
        demo.pod_state({"metadata": {"name": "bot-1", "deletionTimestamp": "now"}}) == "bot-1 ends"
    )


def test_a_roll_out_is_told_by_the_deployments_own_words_and_its_pods() -> None:
    class Told:
        def run(self, command: str, show: bool) -> str:
            deployment = {
                "kind": "LLMDeployment",
                "status": {"conditions": [{"type": "Ready", "message": "0 of 1"}]},
            }
            return json.dumps({"items": [deployment, {"kind": "Pod", **pod(phase="Pending")}]})

    story = demo.Demo(cast("Stack", None))
    story.shell = cast("demo.Shell", Told())
    assert story.roll_out() == "0 of 1; bot-1: Pending"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The demo's own files, with preparations that the test writes."""
    hack = tmp_path / "hack"
    for package in ("devstack", "kindstack"):
        shutil.copytree(
            ROOT / "hack" / package, hack / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "hack" / "demo", hack / "demo")
    (hack / "kube").mkdir()
    for name in (
        ".venv",
        "cache/kube",
    ):  # as after a first run: the disk's room for one is not what is tested
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def script(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def run_demo(checkout: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLM_OPERATOR_CACHE": str(checkout / "cache"), **settings}
    environment.pop("LLM_OPERATOR_VENV", None)
    command = [sys.executable, str(checkout / "hack" / "demo"), "--provider", "local"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )


def test_a_failed_preparation_ends_the_other_one(checkout: Path) -> None:
    # Before, a missing python3-venv was told at once and ended the demo after the four minutes of
    # the build.
    script(
        checkout / "hack" / "env",
        f"while [ ! -s {checkout}/pid ]; do sleep 0.05; done; echo no venv >&2; exit 1",
    )
    script(
        checkout / "hack" / "kube" / "build",
        f"sleep 600 & echo $! >{checkout}/pid.new; mv {checkout}/pid.new {checkout}/pid; wait",
    )
    done = run_demo(checkout)
    assert done.returncode == 1
    assert done.stdout == "  python  | no venv\n"
    assert done.stderr == "demo: the preparation failed, see the lines above\n"
    build = Path("/proc") / (checkout / "pid").read_text().strip() / "cmdline"
    assert (
        not build.exists() or b"sleep" not in build.read_bytes()
    )  # the kernel may have given its number away


def test_a_program_that_listens_on_the_runtimes_port_of_all_addresses_is_told(
    names: dict[str, Any],
) -> None:
    # Before, the demo waited five minutes for pods that could not listen.
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        names["POD_PORT"] = port = other.getsockname()[1]
        assert (
            names["taken"]()
            == f"pods can't listen on port {port} (Address already in use): end the program that"
            " does (ss -ltnp)"
        )
    assert names["taken"]() is None


def test_a_home_that_can_not_be_written_to_is_told_at_once(checkout: Path) -> None:
    done = run_demo(checkout, HOME="/proc")
    assert done.returncode == 1
    assert done.stderr.startswith("demo: /proc can't be written to")
    assert done.stderr.count("\n") == 1


def test_a_user_without_a_name_and_a_home_is_told_at_once() -> None:
    # Before: a traceback that ended with "Could not determine home directory".
    code = (
        "import pwd, runpy, sys; pwd.getpwuid = lambda uid: {}[uid]; runpy.run_path(sys.argv[1],"
        " run_name='__main__')"
    )
    environment = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code, str(ROOT / "hack" / "demo")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "has no name on this machine and so no home folder: set HOME to a folder of yours.\n"
    )
    assert done.stderr.count("\n") == 1


@pytest.fixture
def names(checkout: Path) -> dict[str, Any]:
    """The names of hack/demo, of a checkout that has never run it."""
    (checkout / ".venv").rmdir()
    (checkout / "cache" / "kube").rmdir()
    found: dict[str, Any] = runpy.run_path(str(checkout / "hack" / "demo"))["room"].__globals__
    found.update(CACHE=checkout / "cache", VENV=checkout / ".venv")
    return found


def test_what_go_writes_while_it_builds_is_room_that_is_wanted(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before, only HOME and the checkout were looked at:
    # a /tmp of 2 GiB failed the build after minutes.
    wanted = names["room"]()
    temporary = Path(tempfile.gettempdir())
    assert (temporary, names["BUILD_GIB"]) in wanted
    monkeypatch.setitem(names, "existing", lambda folder: Elsewhere(folder, alone=temporary))
    usage = {"free": 1 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(**usage))
    assert (
        names["too_full"](temporary, wanted)
        == f"3 GiB of free disk are needed at {temporary}, 1.0 GiB are free"
    )
    usage["free"] = 3 << 30
    assert names["too_full"](temporary, wanted) is None


def test_wheels_that_can_not_be_linked_are_counted(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # uv keeps every wheel below HOME, and makes links of its files where the environment is on the
    # same file system.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for alone, gibibytes in ((None, 0), (cache, names["WHEELS_GIB"])):
        monkeypatch.setitem(names, "existing", lambda folder, alone=alone: Elsewhere(folder, alone))
        assert (cache, gibibytes) in names["room"]()


class Elsewhere:
    """A folder on the one file system, or `alone` on another."""

    def __init__(self, folder: Path, alone: Path | None) -> None:
        self.folder = folder
        self.device = int(folder == alone)

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_dev=self.device)

    def __str__(self) -> str:
        return str(self.folder)
