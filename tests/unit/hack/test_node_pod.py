"""A pod of the process node: its volumes follow what it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from node.api import Api
from node.pod import Pod
from node.settings import Settings
from waiting import until

MANIFEST: dict[str, Any] = {
    "metadata": {"namespace": "team", "name": "bot", "uid": "u-1", "annotations": {}},
    "spec": {
        "volumes": [{"name": "keys", "secret": {"secretName": "keys"}}],
        "containers": [{"name": "runtime", "image": "none", "command": ["sleep", "60"]}],
    },
}


class SlowApi:
    """A Secret whose first reader is answered late, with what it was when asked."""

    def __init__(self) -> None:
        self.data = "b2xk"
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        data = self.data
        first = not self.asked.is_set()
        self.asked.set()
        if first:
            await self.answer.wait()
        return {"data": {"keys.json": data}}

    async def patch(self, *_: Any) -> dict[str, Any]:
        return {"status": {}}


async def test_a_pod_told_of_new_keys_while_it_mounts_the_old_ones_gets_the_new(
    tmp_path: Path,
) -> None:
    api = SlowApi()
    pod = Pod(MANIFEST, cast("Api", api), Settings("node", tmp_path), "127.0.0.1", lambda *_: None)
    try:
        await api.asked.wait()
        api.data = "bmV3"
        told = {
            **MANIFEST,
            "metadata": {**MANIFEST["metadata"], "annotations": {"keys": "changed"}},
        }
        pod.update(told)
        await asyncio.sleep(0.05)
        api.answer.set()
        file = tmp_path / "pods" / "u-1" / "volumes" / "keys" / "keys.json"
        await until(lambda: file.exists() and file.read_text() == "new")
    finally:
        for task in (pod.life, pod.publisher, pod.refresher):
            task.cancel()
        await asyncio.gather(pod.life, pod.publisher, pod.refresher, return_exceptions=True)


SIDECAR: dict[str, Any] = {
    "metadata": {"namespace": "team", "name": "bot", "uid": "u-2"},
    "spec": {
        "initContainers": [
            {
                "name": "beside",
                "image": "none",
                "command": ["sleep", "60"],
                "restartPolicy": "Always",
            },
            {"name": "before", "image": "none", "command": ["true"]},
        ],
        "containers": [{"name": "runtime", "image": "none", "command": ["sleep", "60"]}],
    },
}


async def test_a_sidecar_is_waited_for_no_longer_than_its_start_comes_back_and_ends_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings("node", tmp_path, backoff_seconds=0.3)
    pod = Pod(SIDECAR, cast("Api", SlowApi()), settings, "127.0.0.1", lambda *_: None)
    (beside, before), (runtime,) = pod.inits, pod.mains
    await until(lambda: pod.ready)
    assert before.record.exit_code == 0
    assert pod.status()["phase"] == "Running"
    for kills in (1, 2):  # The first time it is started again at once.
        assert beside.process
        beside.process.handle.kill()
        await until(lambda count=kills: beside.record.restarts == count or not pod.ready)
        await until(lambda: pod.ready)
    assert beside.record.restarts == 2
    assert runtime.record.restarts == 0
    assert {c["type"]: c["status"] for c in pod.status()["conditions"]}["Initialized"] == "True"
    stop = beside.stop
    over = list[bool]()

    async def noted(deadline: float) -> None:
        over.append(bool(runtime.process and runtime.process.over))
        await stop(deadline)

    monkeypatch.setattr(beside, "stop", noted)
    await pod.terminate(5)
    assert set(over) == {True}
    assert beside.process is not None
    assert beside.process.over
