"""The real entry point as the image runs it:
a user without a name, no home, only the API server's address."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from devstack.ports import free_port
from unit.operator.api_server import ApiServer, serving

ROOT = Path(__file__).resolve().parents[3]
UNNAMED = ("unshare", "--user", "--map-user=65532", "--map-group=65532", "--")
"""Runs a command as a user that no passwd file knows,
and leaves it the rights of this one to files."""


def unnamed() -> tuple[str, ...]:
    """What goes before a command. Skips the test where user namespaces are not to be had."""
    if shutil.which("unshare") is None:
        pytest.skip("util-linux's unshare is not installed")
    tried = subprocess.run([*UNNAMED, "id", "-u"], capture_output=True, text=True, check=False)
    if tried.stdout.strip() != "65532":
        pytest.skip(f"this machine lets nobody make a user namespace: {tried.stderr.strip()}")
    return UNNAMED


class Running:
    """An operator's process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    async def ready(self) -> httpx.Response | None:
        """What /readyz says; None while nobody listens."""
        assert self.process.returncode is None, self.log.read_text()[-3000:]
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return await client.get(f"http://127.0.0.1:{self.port}/readyz")
            except httpx.HTTPError:
                return None


@asynccontextmanager
async def operator(server: ApiServer, folder: Path, *before: str) -> AsyncIterator[Running]:
    """`python -m llm_operator`, with a kubeconfig that names `server`."""
    port = free_port()
    log = folder / "log"
    named = [{"name": "a", "cluster": {"server": server.url}}]
    context = [{"name": "a", "context": {"cluster": "a", "user": "a"}}]
    kubeconfig = {
        "current-context": "a",
        "contexts": context,
        "clusters": named,
        "users": [{"name": "a", "user": {}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"runtimeImage": "example.com/runtime:1", "port": port})
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "KUBECONFIG": str(folder / "kubeconfig"),
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime")),
        "API_HOST": "127.0.0.1",
    }
    command = [
        *before,
        sys.executable,
        "-m",
        "llm_operator",
        "--config",
        str(folder / "config.yaml"),
    ]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=out, stderr=out
        )
    try:
        yield Running(process, port, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answers(running: Running, status: int, missing: Sequence[str] = ()) -> None:
    """Wait until its /readyz answers this."""
    while True:
        answer = await running.ready()
        if answer is not None and (answer.status_code, answer.json()["missing"]) == (
            status,
            list(missing),
        ):
            return
        await asyncio.sleep(0.05)


async def test_a_user_without_a_name_leads_and_hears(tmp_path: Path) -> None:
    before = unnamed()
    async with serving() as server, operator(server, tmp_path, *before) as running:
        await asyncio.wait_for(answers(running, 200), 60)
        assert "llmdeployments" in server.watched
        assert len(server.identities) == 1


async def test_a_leader_whose_watches_are_refused_is_not_ready_and_names_the_kind(
    tmp_path: Path,
) -> None:
    async with serving() as server:
        server.refuses.add("configmaps")
        async with operator(server, tmp_path) as running:
            said = ["the watch of ConfigMap hears nothing: 403: configmaps is forbidden"]
            await asyncio.wait_for(answers(running, 503, said), 60)
            server.refuses.clear()
            await asyncio.wait_for(answers(running, 200), 60)


async def test_a_stand_by_is_ready_without_watching(tmp_path: Path) -> None:
    async with serving() as server:
        server.held_by("another")
        async with operator(server, tmp_path) as running:
            await asyncio.wait_for(answers(running, 200), 60)
            assert server.watched == set()


async def test_no_way_to_an_api_server_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    async with serving() as server, operator(server, tmp_path) as running:
        running.process.terminate()
    (tmp_path / "kubeconfig").unlink()
    command = [sys.executable, "-m", "llm_operator", "--config", str(tmp_path / "config.yaml")]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nowhere",
        "PYTHONPATH": f"{ROOT}/operator:{ROOT}/runtime",
    }
    ended = await asyncio.to_thread(
        subprocess.run,
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "no way to an API server" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
