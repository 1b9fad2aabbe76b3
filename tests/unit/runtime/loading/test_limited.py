"""A server under a real memory limit: too little is refused with the limit that would do,
and that limit serves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cgroups import limited
from devstack.ports import free_port
from harness import chat_body
from llm_runtime.contract import report_from_termination_message
from unit.runtime import tiny_model
from waiting import eventually

pytest.importorskip("torch")
# Two starts of a server, with torch each.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(180)]

RUNTIME = Path(__file__).parents[4] / "runtime"
TOO_LITTLE_MIB = 600
"""Enough for the two processes without a model, and for nothing else."""


def command(folder: Path, port: int) -> list[str]:
    file = folder / "config.json"
    model = {"name": "m", "path": str(tiny_model.make(folder / "model"))}
    document = {
        "model": model,
        "authentication": "Disabled",
        "engine": {"device": "cpu", "maxModelLength": 256},
    }
    file.write_text(json.dumps(document))
    serve = ["serve", "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "llm_runtime", *serve]


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_limit_that_is_too_small_is_refused_with_one_that_serves(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME), "DATABASE_URL": "none"}
    port = free_port()
    with limited(TOO_LITTLE_MIB) as enter:
        ended = subprocess.run(
            [*enter, *command(tmp_path, port)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    report = report_from_termination_message(ended.stdout)
    assert report
    assert (ended.returncode, report.reason) == (1, "OutOfMemory")
    named = re.search(
        r"which a memory limit of (\d+) MiB leaves instead of 600 MiB", report.message
    )
    assert named, report.message
    with (
        limited(int(named[1])) as enter,
        subprocess.Popen(
            [*enter, *command(tmp_path, port)], env=environment, cwd=tmp_path
        ) as server,
    ):
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}"), seconds=120)
            for _ in range(3):
                body = chat_body(model="m", max_tokens=8)
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                assert httpx.post(url, json=body, trust_env=False, timeout=60).status_code == 200
        finally:
            server.terminate()
    assert server.returncode == 0
