"""hack/kindstack: what it decides before there is a cluster."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kindstack import __main__ as main
from kindstack import engine, node_image, shell
from kindstack.cluster import KindCluster
from kindstack.phases import Phases
from kindstack.shell import KindError, MachineLacks

WRAPPER = Path(engine.__file__).with_name("runc_wrapper.py")
PRIVILEGED = {
    "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "effective": ["CAP_SYS_RESOURCE"]},
    "oomScoreAdj": -998,
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}],
}


def wrapped(*arguments: str, cwd: Path) -> str:
    """What the runtime behind the wrapper is called with."""
    command = [sys.executable, "-I", str(WRAPPER), "/bin/echo", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("option", [["--bundle", "bundle"], ["--bundle=bundle"], ["-b", "bundle"]])
def test_a_new_container_asks_for_nothing_that_the_machine_lacks(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text(json.dumps({"process": PRIVILEGED, "hostname": "node"}))
    assert wrapped("--root", "r", "create", *option, "name", cwd=tmp_path) == " ".join(
        ["--root", "r", "create", *option, "name"]
    )
    assert json.loads((tmp_path / "bundle" / "config.json").read_text()) == {
        "process": {"capabilities": {"bounding": ["CAP_CHOWN"], "effective": []}, "oomScoreAdj": 0},
        "hostname": "node",
    }


def test_so_does_a_command_in_a_running_container(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text(json.dumps(PRIVILEGED))
    wrapped("exec", "--process", "process.json", "name", cwd=tmp_path)
    assert json.loads((tmp_path / "process.json").read_text())["capabilities"]["bounding"] == ["CAP_CHOWN"]


def test_other_verbs_touch_no_file(tmp_path: Path) -> None:
    assert wrapped("delete", "name", cwd=tmp_path) == "delete name"


def test_without_root_the_error_says_both_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.os, "geteuid", lambda: 1000)
    with pytest.raises(MachineLacks, match=r"start your engine, or run this as root"):
        engine.start(Path("/bin/true"), print)


@pytest.mark.parametrize(("error", "status"), [(MachineLacks("no engine"), 3), (KindError("a failed build"), 1)])
def test_ci_can_tell_a_machine_without_clusters_from_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: KindError, status: int
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setitem(main.VERBS, "test", refuse)
    monkeypatch.setattr(sys, "argv", ["hack/e2e-kind", "--tools", "/tools"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == status
    assert str(error) in capsys.readouterr().out


@pytest.mark.parametrize(("containers", "ends"), [("", True), ("abc\n", False)])
def test_an_engine_of_ours_ends_with_the_last_cluster_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, containers: str, ends: bool
) -> None:
    asked: list[tuple[str, ...]] = []

    def docker(_: engine.Engine, *words: str) -> str:
        asked.append(words)
        return containers if words[0] == "ps" else ""

    monkeypatch.setattr(engine, "FOLDER", tmp_path)
    monkeypatch.setattr(engine.Engine, "docker", docker)
    with subprocess.Popen(["sleep", "60"]) as daemon:
        (tmp_path / "docker.pid").write_text(str(daemon.pid))
        engine.stop(engine.Engine(own=True))
        assert (daemon.poll() is None) is not ends
        assert (("network", "rm", "kind") in asked) is ends, "its bridge would stay on the machine"
        daemon.kill()


def test_a_failed_command_is_named_with_what_it_said() -> None:
    with pytest.raises(KindError, match=r"sh -c echo 'no space left on device'.*failed \(exit 3\).*free some space"):
        shell.run("sh", "-c", "echo 'no space left on device' >&2; exit 3")


def test_a_long_output_keeps_both_its_ends() -> None:
    text = shell.clipped("reason" + "x" * 5000 + "end")
    assert text.startswith("reason")
    assert text.endswith("end")
    assert len(text) < 3100


def test_where_no_cluster_is_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(KindError, match="hack/e2e-kind up"):
        KindCluster.attach(tmp_path)


def test_phases_are_told_as_they_go_in_a_table_and_as_json(tmp_path: Path) -> None:
    lines: list[str] = []
    phases = Phases(lines.append)
    with phases("first"):
        assert lines == ["… first"]
    assert lines[1].startswith("✓ first: ")
    assert [line.split()[0] for line in phases.table().splitlines()] == ["first", "total"]
    phases.write(tmp_path / "phases.json")
    assert json.loads((tmp_path / "phases.json").read_text()) == {"first": 0.0}


def test_the_images_of_the_pods_network_are_those_in_the_node() -> None:
    """No registry has them: a name that differs would be an image that never comes."""
    manifests = (node_image.RECIPE / "manifests" / "default-cni.yaml").read_text()
    assert sorted(re.findall(r"image: (\S+)", manifests)) == sorted(node_image.NETWORK)
