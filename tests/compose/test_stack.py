"""docs/compose.md, step by step: what a newcomer sees."""

import json

import pytest

from compose.site import Site
from kindstack.shell import run
from waiting import eventually

pytestmark = pytest.mark.compose


def test_the_first_chat_is_answered_and_counted_in_postgres(site: Site) -> None:
    before = site.rows()
    answer = site.ask("Hello")
    assert answer.status_code == 200
    assert answer.json()["model"] == "support-bot"
    eventually(lambda: site.rows() > before)


def test_the_engine_holds_the_runtime_to_its_limits(site: Site) -> None:
    (found,) = json.loads(run("docker", "inspect", site.stack.container("runtime")))
    host = found["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 4 << 30
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert found["Config"]["User"] == "65532:65532"
    assert host["PortBindings"] == {
        "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": site.stack.settings["RUNTIME_PORT"]}]
    }


def test_another_version_serves_after_its_number_is_written(site: Site) -> None:
    def said() -> str:
        answer = site.ask("Which one are you?", temperature=0)
        return str(answer.json()["choices"][0]["message"]["content"])

    first = said()
    assert "version: 2" in site.push("second")
    assert said() == first, "a push alone changes nothing"
    site.stack("up", "--detach", "--wait", "runtime", MODEL_VERSION="2")
    assert said() != first
    site.stack("up", "--detach", "--wait", "runtime")
    assert said() == first


def test_data_outlive_down_and_up(site: Site) -> None:
    ann = site.key("ann")
    eventually(lambda: site.ask(headers=ann).status_code == 200)
    before = site.rows()
    site.stack("down")
    site.stack("up", "--detach", "--wait", *site.stack.services)
    assert site.rows() >= before > 0
    assert site.ask(headers=ann).status_code == 200


def test_a_killed_engine_comes_back_by_itself(site: Site) -> None:
    kill = (
        "import glob, os; [os.kill(int(p.split('/')[2]), 9) for p in"
        " glob.glob('/proc/[0-9]*/cmdline') if b'-m\\0llm_runtime.worker' in open(p, 'rb').read()]"
    )
    container = site.stack.container("runtime")

    def restarts() -> int:
        return int(run("docker", "inspect", "--format", "{{.RestartCount}}", container))

    before = restarts()
    site.stack("exec", "--no-TTY", "runtime", "python", "-c", kill)
    eventually(lambda: restarts() == before + 1, seconds=60)
    eventually(site.serves, seconds=120)
    assert "engine" in site.stack("logs", "--no-log-prefix", "runtime")
