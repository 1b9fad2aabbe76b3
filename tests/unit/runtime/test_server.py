"""The process: signals, exit status, and its last line when it gives up."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from devstack.ports import free_port
from harness import chat_body, events
from llm_runtime import __main__ as command_line
from llm_runtime.contract import FatalReport, report_from_termination_message
from llm_runtime.errors import ConfigInvalid
from waiting import eventually

# Each test starts a process of its own, which takes a second where a unit test may take two.
pytestmark = pytest.mark.timeout(30)

ROOT = Path(__file__).parents[3]
RUNTIME = ROOT / "runtime"
SCRIPT = Path(__file__).parent / "scripted_server.py"
SOME_KEY = "a-key-of-this-test"
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": f"{RUNTIME}:{ROOT / 'tests'}",
    "DATABASE_URL": "none",
}

Start = Callable[[float], tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the scripted server and wait until it is ready."""
    processes: list[subprocess.Popen[str]] = []

    def started(drain_seconds: float) -> tuple[subprocess.Popen[str], str]:
        port = free_port()
        command = [sys.executable, str(SCRIPT), str(port), str(drain_seconds)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
        )
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: status(f"{url}/readyz") == 200)
        return process, url

    yield started
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def status(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def stream(url: str) -> Any:
    body = chat_body(stream=True)
    return httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=20
    )


def test_sigterm_fails_readiness_lets_streams_finish_and_exits_zero(start: Start) -> None:
    process, url = start(3)
    with stream(url) as response:
        lines = response.iter_lines()
        next(lines)
        os.killpg(
            process.pid, signal.SIGTERM
        )  # As a supervisor may: the engine's process gets it, too.
        eventually(lambda: status(f"{url}/readyz") == 503)
        assert status(f"{url}/livez") == 200
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert len(rest) > 8
    assert process.wait(timeout=20) == 0
    rows = [json.loads(line) for line in process.stdout or [] if '"usage"' in line]
    assert [row["outcome"] for row in rows] == ["completed"]


def test_streams_that_outlast_the_drain_end_with_an_error_event(start: Start) -> None:
    process, url = start(0.2)
    with stream(url) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        text = "\n".join(lines)
    assert "shut down" in events(text)[-1]["error"]["message"]
    assert process.wait(timeout=20) == 0
    rows = [json.loads(line) for line in process.stdout or [] if '"usage"' in line]
    assert [row["outcome"] for row in rows] == ["interrupted"]


def test_an_idle_server_leaves_at_once(start: Start) -> None:
    process, _ = start(30)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert time.monotonic() - began < 1.5


def engine_of(process: "subprocess.Popen[str]") -> int:
    [worker] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(worker)


def test_a_killed_engine_ends_streams_with_an_error_and_then_the_server(start: Start) -> None:
    process, url = start(30)
    with stream(url) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(engine_of(process), signal.SIGKILL)
        text = "\n".join(lines)
    assert "engine failed" in events(text)[-1]["error"]["message"]
    assert process.wait(timeout=20) == 1, "nobody had to send a signal"
    said = list(process.stdout or [])
    report = report_from_termination_message(said[-1])
    assert report
    assert report.reason == "EngineKilled"
    assert "signal 9" in report.message
    assert [json.loads(line)["outcome"] for line in said if '"usage"' in line] == ["failed"]


def test_who_comes_while_a_server_ends_for_its_engines_death_is_told_to_come_back(
    start: Start,
) -> None:
    process, url = start(30)
    with httpx.Client(trust_env=False, timeout=20) as client:
        os.kill(engine_of(process), signal.SIGKILL)
        eventually(lambda: client.get(f"{url}/readyz").status_code == 503)
        answer = client.post(f"{url}/v1/chat/completions", json=chat_body())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["type"] == "server_error"
    assert process.wait(timeout=20) == 1


def test_a_client_that_is_slow_with_its_body_does_not_hold_up_the_end_of_a_broken_server(
    start: Start,
) -> None:
    process, url = start(30)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        )
        os.kill(engine_of(process), signal.SIGKILL)
        assert process.wait(timeout=10) == 1


def give_up(*arguments: str, **environment: str) -> FatalReport:
    """Run the command line to its failure and read its last line,
    as the operator does from the pod's status."""
    ended = subprocess.run(
        [sys.executable, "-m", "llm_runtime", *arguments],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    report = report_from_termination_message(ended.stdout.splitlines()[-1])
    assert report
    return report


def test_a_wrong_key_in_the_configuration_is_named_in_the_last_line(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"model": {"name": "m", "path": "/m"}, "engine": {"maxModelLengthh": 5}})
    )
    report = give_up("serve", "--config", str(file), API_KEY=SOME_KEY)
    assert report.reason == "ConfigInvalid"
    assert "engine.maxModelLengthh: unknown key" in report.message


def test_required_authentication_without_any_place_for_keys_does_not_start() -> None:
    report = give_up("serve", "--port", "0", MODEL_PATH="/nowhere")
    assert report.reason == "ConfigInvalid"
    assert "API_KEY" in report.message
    assert "DATABASE_URL" in report.message


def test_a_server_without_any_key_starts_and_says_how_to_make_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    ended = subprocess.run(
        [sys.executable, "-m", "llm_runtime", "serve", "--host", "127.0.0.1", "--port", "0"],
        env={**ENVIRONMENT, "DATABASE_URL": url, "MODEL_PATH": str(tmp_path / "nowhere")},
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "llm-runtime keys create" in ended.stdout
    report = report_from_termination_message(ended.stdout.splitlines()[-1])
    assert report
    assert report.reason == "ModelNotFound", "only the model was missing"


@pytest.mark.parametrize("command", ["serve", "fetch"])
def test_a_model_that_is_not_there_is_the_last_line(command: str, tmp_path: Path) -> None:
    arguments = ["serve", "--port", "0", "--host", "127.0.0.1"] if command == "serve" else ["fetch"]
    report = give_up(
        *arguments,
        "--models",
        str(tmp_path),
        MODEL_PATH=str(tmp_path / "nowhere"),
        API_KEY=SOME_KEY,
    )
    assert report.reason == "ModelNotFound"


def test_a_port_that_is_taken_is_the_last_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        report = give_up(
            "serve", "--host", "127.0.0.1", "--port", port, MODEL_PATH="/nowhere", API_KEY=SOME_KEY
        )
    # Before: "the lines above say why", in a pod's status, where there are no lines above.
    assert (
        report.message
        == f"can't listen on 127.0.0.1:{port}: another program does; end it, or choose another port"
        " (API_PORT)"
    )


def test_an_address_that_this_machine_has_not_is_told_with_the_reason() -> None:
    with pytest.raises(
        ConfigInvalid, match=r"can't listen on 192\.0\.2\.1:0: Cannot assign requested address"
    ):
        command_line._refuse_taken("192.0.2.1", 0)


def test_a_name_with_one_address_of_this_machine_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    # `localhost` where IPv6 is off: the server leaves that address out.
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*stream, ("192.0.2.1", 0)), (*stream, ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    command_line._refuse_taken("localhost", 0)


@pytest.mark.parametrize(
    "environment",
    [
        {"MODEL__PATH": "/hush-hush/nowhere", "MODEL__NAME": "m"},
        {"SERVER__LOG_FILE": "/proc/hush-hush/log", "MODEL_PATH": "/m"},
    ],
)
def test_no_report_and_no_line_quotes_what_came_by_the_environment(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "llm_runtime", "serve", "--models", str(tmp_path), "--port", "0"],
        env={**ENVIRONMENT, "API_KEY": SOME_KEY, "DATABASE_URL": "none", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    report = report_from_termination_message(ended.stdout.splitlines()[-1])
    assert report
    assert f"${next(iter(environment))}" in ended.stdout or "logFile" in report.message
    assert "hush" not in ended.stdout + ended.stderr
